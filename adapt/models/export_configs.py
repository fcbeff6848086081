"""The original config.json of a native model that was never imported.

An imported folder keeps its original files (`original/`), and export restores them. A model trained
from a native `-hf` checkpoint has none: its config is written anew, with every key that LMDeploy,
vLLM and the repository's own code read.
"""

from __future__ import annotations

from typing import Any

from adapt.errors import CheckpointError
from adapt.models.config_maps import TEXT_SAME, VISION_NAMES

_MODEL_TYPES = {
    "Qwen2ForCausalLM": "qwen2",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM2VEForCausalLM": "internlm2",
    "Phi3ForCausalLM": "phi3",
}
# Classes of the code that an OpenGVLab repository brings along; the files are not ours to ship.
_REMOTE_CODE = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}


def original_config(config: Any, architecture: str) -> dict[str, Any]:
    """Return the original config.json of a native config.

    Args:
        config: InternVLConfig or MonoInternVLConfig.
        architecture: The original class of the language model.

    Raises:
        CheckpointError: A rope setting that the original layout has no word for.
    """
    vision = _vision_section(config.vision_config, architecture)
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": _REMOTE_CODE,
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision["image_size"],
        "hidden_size": config.text_config.hidden_size,
        "llm_config": _text_section(config.text_config, architecture),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": getattr(config, "vision_feature_layer", -1),
        "tie_word_embeddings": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }


def _vision_section(vision: Any, architecture: str) -> dict[str, Any]:
    is_mono = architecture == "InternLM2VEForCausalLM"
    names = {
        "architectures": ["InternVisionPatchModel" if is_mono else "InternVisionModel"],
        "model_type": "intern_vit_patch" if is_mono else "intern_vit_6b",
        "drop_path_rate": 0.0,
        "use_flash_attn": True,
    }
    values = {old: getattr(vision, new) for old, new in VISION_NAMES.items()}
    # The native class holds (height, width); the original one a side.
    for side in ("image_size", "patch_size"):
        values[side] = values[side][0]
    return {**names, **values}


def _text_section(text: Any, architecture: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": _MODEL_TYPES[architecture],
        **{name: getattr(text, name) for name in TEXT_SAME},
        "use_cache": True,
        **_rope_fields(text),
    }
    if architecture.startswith("InternLM2"):
        return {
            **fields,
            "bias": text.attention_bias,
            "attn_implementation": "flash_attention_2",
            "auto_map": {
                "AutoConfig": "configuration_internlm2.InternLM2Config",
                "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
                "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            },
        }
    if architecture == "Phi3ForCausalLM":
        names = ("resid_pdrop", "embd_pdrop", "attention_dropout", "sliding_window")
        fields |= {name: getattr(text, name) for name in names}
        fields["original_max_position_embeddings"] = text.original_max_position_embeddings
    return fields


def _rope_fields(text: Any) -> dict[str, Any]:
    rope = dict(text.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    rope.pop("partial_rotary_factor", None)
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind == "longrope":
        factors = {name: rope[name] for name in ("long_factor", "short_factor")}
        return {"rope_theta": theta, "rope_scaling": {"type": "su", **factors}}
    if kind in ("dynamic", "linear"):
        return {
            "rope_theta": theta,
            "rope_scaling": {"type": kind, "factor": float(rope["factor"])},
        }
    raise CheckpointError(
        f"config.json: text_config.rope_parameters has rope_type {kind}, which the original layout "
        f"has no word for; expected default, dynamic, linear or longrope"
    )
