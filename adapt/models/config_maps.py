"""config.json between the original layout and transformers' InternVLConfig, field by field.

    original                                            native
    llm_config (Qwen2 | InternLM2 | Phi-3)              text_config (qwen2 | llama | phi3)
    vision_config (intern_vit_6b)                       vision_config (internvl_vision)
    force_image_size, patch_size, downsample_ratio      image_seq_length
    rope_theta, rope_scaling                            rope_parameters
    llm_config.tie_word_embeddings                      tie_word_embeddings, at the top too

Keys absent from an original file have the defaults of the original classes, as written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from adapt.errors import CheckpointError, nearest
from adapt.quiet import quiet_transformers

VISION_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": False,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qk_normalization": True,
    "num_hidden_layers": 48,
    "norm_type": "rms_norm",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 0.1,
}
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "Qwen2ForCausalLM": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "InternLM2ForCausalLM": {
        "vocab_size": 103168,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "bias": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "Phi3ForCausalLM": {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
}
# What both sides call by the same name.
TEXT_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
VISION_NAMES = {
    "num_channels": "num_channels",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "qkv_bias": "attention_bias",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "qk_normalization": "use_qk_norm",
    "num_hidden_layers": "num_hidden_layers",
    "norm_type": "norm_type",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "initializer_factor": "layer_scale_init_value",
}
# Far beyond any model: a damaged number must not fill the memory with layers.
_MOST_LAYERS = 1000
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "image_size",
    "patch_size",
    "num_channels",
)


def with_defaults(original: dict[str, Any]) -> dict[str, Any]:
    """Return an original config.json with every absent key filled in.

    Raises:
        CheckpointError: A section is missing.
    """
    language = _section(original, "llm_config")
    architecture = str((language.get("architectures") or [None])[0])
    # Mono-InternVL's language model is InternLM2 with visual experts.
    defaults = TEXT_DEFAULTS[architecture.replace("InternLM2VE", "InternLM2")]
    llm = {"tie_word_embeddings": False, "rope_scaling": None, **defaults, **language}
    if llm.get("num_key_value_heads") is None:
        llm["num_key_value_heads"] = llm["num_attention_heads"]
    vision = {**VISION_DEFAULTS, **_section(original, "vision_config")}
    outer = {"downsample_ratio": 0.5, "select_layer": -1}
    return {**outer, **original, "llm_config": llm, "vision_config": vision}


def outer_config(original: dict[str, Any], image_token_id: int) -> dict[str, Any]:
    """Return the native fields outside text and vision.

    Raises:
        CheckpointError: A setting that the native class cannot express.
    """
    if original.get("ps_version", "v1") != "v2":
        raise CheckpointError(
            f"config.json: ps_version is {original.get('ps_version')}, expected v2; the older "
            f"pixel shuffle orders pixels differently and has no native counterpart"
        )
    vision = {**VISION_DEFAULTS, **_section(original, "vision_config")}
    tile_px = original.get("force_image_size") or vision["image_size"]
    if tile_px != vision["image_size"]:
        raise CheckpointError(
            f"config.json: force_image_size is {tile_px!r}, but vision_config.image_size is "
            f"{vision['image_size']}; expected the same: positions are not resized here"
        )
    ratio = original.get("downsample_ratio", 0.5)
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise CheckpointError(
            f"config.json: downsample_ratio is {ratio!r}, expected a number up to 1, such as 0.5"
        )
    tied = bool(_section(original, "llm_config").get("tie_word_embeddings", False))
    return {
        "image_token_id": image_token_id,
        "image_seq_length": round(tile_px // vision["patch_size"] * ratio) ** 2,
        "downsample_ratio": float(ratio),
        # The native default is True: a head left tied here loads "without missing keys" and is
        # the embedding matrix.
        "tie_word_embeddings": tied,
    }


def vision_fields(original: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of InternVLVisionConfig."""
    section = _section(original, "vision_config")
    values = _checked({**VISION_DEFAULTS, **section}, "vision_config")
    _require_divisible(values, "hidden_size", "num_attention_heads", "vision_config")
    fields = {native: values[name] for name, native in VISION_NAMES.items()}
    return {**fields, "projection_dropout": values["dropout"], "use_mean_pooling": True}


def text_fields(original: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the text fields that both sides name alike, defaults filled in.

    Args:
        original: The whole config.json.
        architecture: Whose defaults, a key of TEXT_DEFAULTS.
    """
    section = _section(original, "llm_config")
    given = {"tie_word_embeddings": False, "hidden_act": "silu", "initializer_range": 0.02}
    values = {**given, **TEXT_DEFAULTS[architecture], **section}
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    _checked(values, "llm_config")
    _require_divisible(values, "hidden_size", "num_attention_heads", "llm_config")
    _require_divisible(values, "num_attention_heads", "num_key_value_heads", "llm_config")
    return {name: values.get(name) for name in TEXT_SAME}


def qwen2_text(original: dict[str, Any]) -> dict[str, Any]:
    """Return the text config of a Qwen2 language model."""
    section = _section(original, "llm_config")
    # InternVL2's Qwen2 has none; InternVL3's is dynamic.
    rope = _rope(section, TEXT_DEFAULTS["Qwen2ForCausalLM"], ("dynamic",))
    if section.get("use_sliding_window"):
        raise CheckpointError(
            "config.json: llm_config.use_sliding_window is on; packs of records need full attention"
        )
    fields = text_fields(original, "Qwen2ForCausalLM")
    return {"model_type": "qwen2", **fields, "rope_parameters": rope, "use_sliding_window": False}


def internlm2_text(original: dict[str, Any]) -> dict[str, Any]:
    """Return the Llama text config of an InternLM2 language model."""
    section = _section(original, "llm_config")
    defaults = TEXT_DEFAULTS["InternLM2ForCausalLM"]
    if (version := section.get("rope_pos_id_version", "default")) != "default":
        raise CheckpointError(
            f"config.json: llm_config.rope_pos_id_version is {version}, expected default: variable "
            f"position steps for pictures have no native counterpart"
        )
    return {
        "model_type": "llama",
        **text_fields(original, "InternLM2ForCausalLM"),
        "attention_bias": bool(section.get("bias", defaults["bias"])),
        "mlp_bias": False,
        "rope_parameters": _rope(section, defaults, ("dynamic", "linear")),
    }


def phi3_text(original: dict[str, Any]) -> dict[str, Any]:
    """Return the text config of a Phi-3 language model; `su` becomes `longrope`."""
    section = _section(original, "llm_config")
    defaults = TEXT_DEFAULTS["Phi3ForCausalLM"]
    fields = text_fields(original, "Phi3ForCausalLM")
    rope = _rope(section, defaults, ("su", "longrope"))
    positions = fields["max_position_embeddings"]
    switch = {**defaults, **section}["original_max_position_embeddings"]
    window = section.get("sliding_window")
    _require_size(switch, "llm_config.original_max_position_embeddings")
    if window is not None:
        _require_size(window, "llm_config.sliding_window")
    if rope["rope_type"] == "su":
        rope["rope_type"] = "longrope"
    if rope["rope_type"] == "longrope":
        rope["original_max_position_embeddings"] = switch
        rope["factor"] = positions / switch
    dropouts = {name: section.get(name, 0.0) for name in ("resid_pdrop", "embd_pdrop")}
    return {
        "model_type": "phi3",
        **fields,
        **dropouts,
        "attention_dropout": section.get("attention_dropout", 0.0),
        "original_max_position_embeddings": switch,
        # A window wider than every position never acts; left in, it only forbids faster masks.
        "sliding_window": window if window is not None and window < positions else None,
        "rope_parameters": rope,
    }


def _rope(
    section: dict[str, Any], defaults: dict[str, Any], known: tuple[str, ...]
) -> dict[str, Any]:
    """Return `rope_parameters` from `rope_theta` and `rope_scaling`, under the original type."""
    theta = section.get("rope_theta", defaults["rope_theta"])
    if not isinstance(theta, int | float) or not theta > 0:
        raise CheckpointError(
            f"config.json: llm_config.rope_theta is {theta!r}, expected a positive number"
        )
    theta = float(theta)
    scaling = section.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else scaling
    if not isinstance(scaling, dict) or kind not in known:
        raise CheckpointError(
            f"config.json: llm_config.rope_scaling has type {kind}, expected "
            f"{' or '.join(known)} with this language model"
        )
    rest = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
    return {"rope_type": kind, "rope_theta": theta, **rest}


def _section(original: dict[str, Any], name: str) -> dict[str, Any]:
    section = original.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json: has no {name}, expected an object; fetch it again")
    return section


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse sizes that are not positive integers: everything is counted from them."""
    for name in _SIZES:
        _require_size(values.get(name, 1), f"{where}.{name}")
    return values


def _require_size(value: Any, place: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {place} is {value!r}, expected a positive integer")


def _require_divisible(values: dict[str, Any], whole: str, part: str, where: str) -> None:
    if values[whole] % values[part]:
        raise CheckpointError(
            f"config.json: {where}.{whole} is {values[whole]}, not a multiple of {part} "
            f"({values[part]})"
        )


def language_architecture(original: dict[str, Any], known: list[str]) -> str:
    """Return `llm_config.architectures[0]`.

    Raises:
        CheckpointError: Absent, or none of `known`.
    """
    names = _section(original, "llm_config").get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in known:
        raise CheckpointError(
            f"config.json: the language model is {name}, which has no layout here"
            f"{nearest(str(name), known)}"
        )
    return str(name)


def checked_config(config_class: Any, **fields: Any) -> Any:
    """Build a transformers config; what it refuses is the checkpoint's fault.

    Raises:
        CheckpointError: A field has a wrong type, or fields contradict each other.
    """
    for count in _layer_counts(fields):
        if isinstance(count, int) and count > _MOST_LAYERS:
            raise CheckpointError(
                f"config.json: num_hidden_layers is {count}, expected at most {_MOST_LAYERS}"
            )
    try:
        # What transformers would only warn of is checked here, or refused.
        with quiet_transformers():
            return config_class(**fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json: transformers refuses it: {reason}") from error


def _layer_counts(fields: dict[str, Any]) -> Iterator[Any]:
    for name, value in fields.items():
        if name == "num_hidden_layers":
            yield value
        elif isinstance(value, dict):
            yield from _layer_counts(value)


def checked_model_config(config_class: Any, **fields: Any) -> Any:
    """Build the config of a whole model, whose parts must agree; see `checked_config`."""
    config = checked_config(config_class, **fields)
    vision, vocabulary = config.vision_config, config.text_config.vocab_size
    if not 0 <= config.image_token_id < vocabulary:
        raise CheckpointError(
            f"image token id {config.image_token_id} is outside the vocabulary of {vocabulary}; "
            f"give the id of <IMG_CONTEXT> in this checkpoint's tokenizer"
        )
    pad = config.text_config.pad_token_id
    if pad is not None and not 0 <= pad < vocabulary:
        raise CheckpointError(
            f"config.json: pad_token_id is {pad}, outside the vocabulary of {vocabulary}"
        )
    patches = vision.image_size[0] // vision.patch_size[0]
    tokens = round(patches * config.downsample_ratio) ** 2
    if not tokens or tokens != config.image_seq_length:
        raise CheckpointError(
            f"config.json: image_seq_length is {config.image_seq_length}, but a tile of "
            f"{patches}x{patches} patches with downsample_ratio {config.downsample_ratio} is "
            f"{tokens} tokens"
        )
    layer, layers = getattr(config, "vision_feature_layer", -1), vision.num_hidden_layers
    # transformers takes 0 for "not given".
    if not isinstance(layer, int) or not layer or not -layers - 1 <= layer <= layers:
        raise CheckpointError(
            f"config.json: select_layer (vision_feature_layer) is {layer!r}, expected -1 (the "
            f"last), or another of the vision tower's {layers} layers"
        )
    return config
