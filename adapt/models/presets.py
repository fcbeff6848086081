"""Presets: the models `adapt` knows by name (`presets/NAME.yaml`).

A preset says what a checkpoint of that name is: architecture, sizes, tokenizer, chat template,
where it is kept, under which licence, how many parameters. Sizes are complete, so that the model
can be built without weights (on the meta device, or at random for `tiny`). `extends:` takes
everything from another file and replaces the keys given; a file with a leading underscore is only
there to be extended.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import yaml

from adapt.errors import UsageError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PRESETS = Path(__file__).parent / "presets"
_TINY_TOKENIZER = Path(__file__).parent / "tiny"


class ParameterCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of a model and of its parts; `language` includes the head and any experts."""

    total: int
    vision: int
    projector: int
    language: int


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a checkpoint of a known name is.

    Attributes:
        name: How the user asks for it.
        title: Its name in print.
        architecture: `internvl` (vision tower, projector, language model) or `mono`.
        language_model: What the language model was trained from.
        hub_id: Repository on the Hugging Face hub; None: it has no weights to fetch.
        layout: Of that repository: `original` (OpenGVLab), `native` (transformers), `none`.
        licence: As the repository states it; the language model's own terms may apply besides.
        source: Where the facts are from.
        tokenizer: The files its tokenizer comes as.
        template: Chat template, see `adapt.models.chat`.
        tokens: Tokens that the language model's own tokenizer does not have.
        vision: Fields of InternVLVisionConfig.
        text: Fields of the text config, with `model_type`.
        downsample_ratio: 0.5 merges 2x2 patches into a token.
        parameters: Exact counts, from building it.
        unverified: What could not be checked against a source.
    """

    name: str
    title: str
    architecture: Literal["internvl", "mono"]
    language_model: str
    layout: Literal["original", "native", "none"]
    licence: str
    source: str
    tokenizer: str
    template: str
    tokens: tuple[str, ...]
    vision: dict[str, Any]
    text: dict[str, Any]
    downsample_ratio: float
    parameters: ParameterCounts
    hub_id: str | None = None
    unverified: tuple[str, ...] = ()

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return int(self.vision["image_size"][0])

    @property
    def tokens_per_tile(self) -> int:
        """Tokens a tile becomes after the pixel shuffle."""
        patches = self.tile_px // int(self.vision["patch_size"][0])
        return round(patches * self.downsample_ratio) ** 2

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the tokenizer shipped with the package: `tiny` has one."""
        return _TINY_TOKENIZER if self.layout == "none" else None

    def config(self, image_token_id: int) -> PretrainedConfig:
        """Return the transformers config, head untied at the top level.

        Args:
            image_token_id: Of `<IMG_CONTEXT>`, from the tokenizer.
        """
        return _config_class(self.architecture)(
            # Copies all the way down: transformers writes into the mappings it is given.
            vision_config=deepcopy(self.vision),
            text_config={**deepcopy(self.text), "tie_word_embeddings": False},
            image_token_id=image_token_id,
            image_seq_length=self.tokens_per_tile,
            downsample_ratio=self.downsample_ratio,
            tie_word_embeddings=False,
        )


def preset_names() -> list[str]:
    """Return every name `load_preset` takes."""
    return sorted(path.stem for path in _PRESETS.glob("[!_]*.yaml"))


@cache
def load_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        UsageError: No preset has this name.
    """
    if name not in preset_names():
        raise UsageError(f"no model preset is called {name}{nearest(name, preset_names())}")
    return msgspec.convert({"name": name, **_read(name)}, Preset)


def model_class(architecture: str) -> type[PreTrainedModel]:
    """Return the transformers class of an architecture (`internvl` or `mono`)."""
    if architecture == "mono":
        from adapt.models.mono import MonoInternVLForConditionalGeneration

        return MonoInternVLForConditionalGeneration
    import transformers

    native: type[PreTrainedModel] = transformers.InternVLForConditionalGeneration
    return native


def count_parameters(model: PreTrainedModel) -> ParameterCounts:
    """Count the parameters of an InternVL or Mono model; a meta model will do."""
    counts = {"vision": 0, "projector": 0, "language": 0}
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            part = "projector"
        elif "vision_tower" in name or "vision_embeddings" in name:
            part = "vision"
        else:
            part = "language"
        counts[part] += parameter.numel()
    return ParameterCounts(total=sum(counts.values()), **counts)


def _config_class(architecture: str) -> type[PretrainedConfig]:
    if architecture == "mono":
        from adapt.models.mono import MonoInternVLConfig

        return MonoInternVLConfig
    import transformers

    native: type[PretrainedConfig] = transformers.InternVLConfig
    return native


def _read(name: str) -> dict[str, Any]:
    """Read one file and whatever it extends; a mapping given anew replaces the inherited one."""
    fields: dict[str, Any] = yaml.safe_load((_PRESETS / f"{name}.yaml").read_text("utf-8"))
    base = fields.pop("extends", None)
    return {**_read(base), **fields} if base else fields


def preset_of(name: str) -> Preset | None:
    """Return the preset that is called so, or whose hub id it is; None when there is none."""
    if name in preset_names():
        return load_preset(name)
    presets = (load_preset(known) for known in preset_names())
    return next((preset for preset in presets if preset.hub_id == name), None)
