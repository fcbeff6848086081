"""The layouts there are, and which one a checkpoint has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import config_maps, name_maps
from adapt.models.export_configs import original_config
from adapt.models.layouts import Layout, Pair

# transformers keeps the names of its first InternVL release on disk.
INTERNVL_DISK_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


@cache
def layouts() -> dict[str, Layout]:
    """Return every layout by the original name of its language model."""
    from adapt.models.mono_layout import MONO_LAYOUT

    known = [
        _internvl("qwen2", "Qwen2ForCausalLM", name_maps.qwen2_pairs, config_maps.qwen2_text),
        _internvl(
            "internlm2",
            "InternLM2ForCausalLM",
            name_maps.internlm2_pairs,
            config_maps.internlm2_text,
        ),
        _internvl("phi3", "Phi3ForCausalLM", name_maps.phi3_pairs, config_maps.phi3_text),
        MONO_LAYOUT,
    ]
    return {layout.architecture: layout for layout in known}


def layout_of_original(original: dict[str, Any]) -> Layout:
    """Return the layout of an original config.json.

    Raises:
        CheckpointError: It is another kind of model.
    """
    kind = original.get("model_type")
    if kind in ("internvl", "mono_internvl"):
        raise CheckpointError(
            f"config.json: model_type is {kind}: the checkpoint is native already, expected the "
            f"original layout (internvl_chat); use it as it is"
        )
    if kind != "internvl_chat":
        raise CheckpointError(
            f"config.json: model_type is {kind}, expected internvl_chat (an OpenGVLab InternVL2 "
            f"or Mono-InternVL checkpoint); this is another model"
        )
    return layouts()[config_maps.language_architecture(original, sorted(layouts()))]


def layout_of_native(config: dict[str, Any]) -> Layout:
    """Return the layout of a native config.json.

    Raises:
        CheckpointError: It is another kind of model.
    """
    kind = str(config.get("model_type"))
    section = config.get("text_config")
    text = str(section.get("model_type")) if isinstance(section, dict) else "None"
    names = {
        ("internvl", "qwen2"): "Qwen2ForCausalLM",
        ("internvl", "llama"): "InternLM2ForCausalLM",
        ("internvl", "phi3"): "Phi3ForCausalLM",
        ("mono_internvl", "llama"): "InternLM2VEForCausalLM",
    }
    if kind == "internvl_chat":
        raise CheckpointError(
            "config.json: model_type is internvl_chat, the original layout, expected a native "
            "checkpoint; adapt models import makes one"
        )
    if (kind, text) not in names:
        raise CheckpointError(
            f"config.json: model_type is {kind} with a {text} language model, expected internvl "
            f"(qwen2, llama or phi3) or mono_internvl (llama); this is another model"
        )
    return layouts()[names[kind, text]]


def _internvl(
    name: str,
    architecture: str,
    text_pairs: Callable[[Any], Iterator[Pair]],
    text_config: Callable[[dict[str, Any]], dict[str, Any]],
) -> Layout:
    """Return the layout of a modular model: vision tower, projector, language model."""

    def pairs(config: Any) -> list[Pair]:
        return [
            *name_maps.vision_pairs(config.vision_config),
            *name_maps.projector_pairs(),
            *text_pairs(config.text_config),
        ]

    def import_config(original: dict[str, Any], image_token_id: int) -> Any:
        from transformers import InternVLConfig

        return config_maps.checked_model_config(
            InternVLConfig,
            text_config=text_config(original),
            vision_config=config_maps.vision_fields(original),
            vision_feature_layer=original.get("select_layer", -1),
            **config_maps.outer_config(original, image_token_id),
        )

    def build(config: Any) -> Any:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration(config)

    return Layout(
        name=name,
        architecture=architecture,
        pairs=pairs,
        import_config=import_config,
        export_config=lambda config: original_config(config, architecture),
        build=build,
        disk_prefixes=INTERNVL_DISK_PREFIXES,
    )
