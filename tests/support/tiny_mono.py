"""A tiny Mono-InternVL of random weights, and token rows with pictures for it."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from adapt.models.mono import (
    MonoInternVLConfig,
    MonoInternVLForConditionalGeneration,
)

IMAGE = 90  # id of <IMG_CONTEXT>
TILE_TOKENS = 4
TILE_PX = 56


def make_config(**text: object) -> MonoInternVLConfig:
    return MonoInternVLConfig(
        text_config=LlamaConfig(
            **{
                "vocab_size": 96,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                "initializer_range": 0.2,
                "pad_token_id": 0,
                **text,
            }
        ),
        vision_config=InternVLVisionConfig(
            hidden_size=16, num_hidden_layers=0, image_size=TILE_PX, patch_size=14
        ),
        image_token_id=IMAGE,
        image_seq_length=TILE_TOKENS,
    )


def make_model(seed: int = 0, **text: object) -> MonoInternVLForConditionalGeneration:
    torch.manual_seed(seed)
    return MonoInternVLForConditionalGeneration(make_config(**text)).eval()


def sample(tiles: int, words: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a row of ids (some words, the tiles, the other words) and its pixels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, IMAGE, (words,), generator=generator)
    image = torch.full((tiles * TILE_TOKENS,), IMAGE)
    half = words // 2
    row = torch.cat((ids[:half], image, ids[half:]))[None]
    return row, torch.randn(tiles, 3, TILE_PX, TILE_PX, generator=generator)


class CountTokens:
    """A forward hook that notes how many tokens a module was given, call by call."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[int] = []
        module.register_forward_hook(self)

    def __call__(self, _module: nn.Module, inputs: tuple[torch.Tensor], _output: object) -> None:
        self.seen.append(inputs[0][..., 0].numel())
