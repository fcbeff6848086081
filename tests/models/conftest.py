"""Small checkpoints in the original layout, made from what the layout itself says is in one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapt.models.conversion import native_shapes
from adapt.models.known_layouts import layout_of_original

IMAGE_TOKEN = 5
LANGUAGE: dict[str, dict[str, Any]] = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 10000.0},
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 32,
        "rope_scaling": {
            "type": "su",
            "short_factor": [1.0, 1.1],
            "long_factor": [1.5, 4.0],
        },
        "sliding_window": 262144,
    },
    "mono": {
        "architectures": ["InternLM2VEForCausalLM"],
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}
TEMPLATES = {
    "qwen2": "Hermes-2",
    "internlm2": "internlm2-chat",
    "phi3": "phi3-chat",
    "mono": "internlm2-chat",
}


def original_config(kind: str, *, llm: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Return an original config.json: tiles of 56 pixels, 4 tokens each."""
    return {
        "model_type": "internvl_chat",
        "template": TEMPLATES[kind],
        "ps_version": "v2",
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "llm_config": {
            "vocab_size": 96,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4 if kind == "phi3" else 2,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **LANGUAGE[kind],
            **llm,
        },
        "vision_config": {
            "image_size": 56,
            "patch_size": 14,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "model_type": "intern_vit_patch" if kind == "mono" else "intern_vit_6b",
            **vision,
        },
    }


@pytest.fixture(scope="session")
def original_fields() -> Callable[..., dict[str, Any]]:
    """Return the function that makes an original config.json of a kind of language model."""
    return lambda kind, llm=None, vision=None: original_config(
        kind, llm=llm or {}, vision=vision or {}
    )


@pytest.fixture(scope="session")
def make_original() -> Callable[..., Path]:
    """Return the function that writes an original checkpoint and gives its folder back."""

    def make(
        folder: Path,
        kind: str = "internlm2",
        *,
        llm: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        fields = original_config(kind, llm=llm or {}, vision=vision or {})
        layout = layout_of_original(fields)
        config = layout.import_config(fields, IMAGE_TOKEN)
        pairs = layout.pairs(config)
        shapes = native_shapes(layout, config, pairs)
        random = torch.Generator().manual_seed(7)
        tensors = {}
        for pair in pairs:
            shape = pair.cut.joined_shape([shapes[name] for name in pair.native])
            # Wide enough that a part in the wrong place shows in the logits.
            tensors[pair.original] = (torch.randn(shape, generator=random) * 0.3).to(dtype)
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(fields, indent=1))
        return folder

    return make
