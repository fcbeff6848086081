"""What a folder in OpenGVLab's layout holds beside its weights, without the code.

    config.json, generation_config.json, preprocessor_config.json, tokenizer files

The code that an OpenGVLab repository brings along (`*.py`, remote code) is not ours to ship;
docs/models.md says which server needs which of it, and where it is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.errors import CheckpointError
from adapt.jsonl import write_json
from adapt.models.chat import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, load_template
from adapt.models.checkpoint_config import is_same_setting, naming, read_config
from adapt.models.config_maps import TEXT_SAME, VISION_NAMES
from adapt.models.known_layouts import layout_of_original
from adapt.models.native_files import ORIGINAL_FILES, original_files, write_generation_config
from adapt.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from adapt.models.shards import DTYPES
from adapt.models.tokenizers import has_tokenizer, load_tokenizer, saving

if TYPE_CHECKING:
    from adapt.models.native_source import NativeSource

# As in every OpenGVLab repository of InternVL.
_PREPROCESSOR: dict[str, Any] = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "resample": 3,
}
_IMAGE_TOKENS = (
    IMAGE_START,
    IMAGE_END,
    IMAGE_CONTEXT,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
_REMOVE = "remove the folder original/ to have its files written anew"
# Ids and initial values may differ without another computation.
_IDLE = {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"}


def write_original_files(folder: Path, source: NativeSource) -> None:
    """Write everything of an original folder but its weights and its code.

    Raises:
        CheckpointError: The kept original config.json describes another model.
    """
    kept = source.folder / ORIGINAL_FILES
    if (kept / "config.json").exists():
        _restore(folder, kept, source)
    else:
        _write_anew(folder, source)


def _restore(folder: Path, kept: Path, source: NativeSource) -> None:
    for path in original_files(kept):
        shutil.copyfile(path, folder / path.name)
    fields = read_config(kept)
    with naming(kept):
        _require_same_model(fields, source)
    if _set_dtype(fields, source.checkpoint.main_dtype):
        write_json(folder / "config.json", fields)


def _require_same_model(fields: dict[str, Any], source: NativeSource) -> None:
    """Refuse an original config.json that no longer describes the model."""
    layout = layout_of_original(fields)
    if layout is not source.layout:
        raise CheckpointError(
            f"config.json: is of a {layout.name} model, but the model now is {source.layout.name}; "
            f"{_REMOVE}"
        )
    before = layout.import_config(fields, source.config.image_token_id)
    for section, names in (
        ("", ["downsample_ratio", "vision_feature_layer"]),
        ("text_config", [name for name in TEXT_SAME if name not in _IDLE] + ["rope_parameters"]),
        ("vision_config", [name for name in VISION_NAMES.values() if name not in _IDLE]),
    ):
        for name in names:
            # Mono-InternVL has no layers to choose from.
            old, new = (
                getattr(getattr(config, section, config), name, None)
                for config in (before, source.config)
            )
            if not is_same_setting(old, new):
                place = f"{section}.{name}".lstrip(".")
                raise CheckpointError(
                    f"config.json: gives {place} {old}, but the model now has {new}; {_REMOVE}"
                )


def _set_dtype(fields: dict[str, Any], dtype: str) -> bool:
    """Bring `torch_dtype` up to date wherever it is given; return whether anything changed."""
    name = str(DTYPES[dtype]).removeprefix("torch.")
    changed = False
    for part in (fields, fields["llm_config"], fields["vision_config"]):
        if part.get("torch_dtype") not in (None, name):
            part["torch_dtype"] = name
            changed = True
    return changed


def _write_anew(folder: Path, source: NativeSource) -> None:
    template = load_template(source.card.template)
    fields = source.layout.export_config(source.config)
    dtype = str(DTYPES[source.checkpoint.main_dtype]).removeprefix("torch.")
    write_json(folder / "config.json", {**fields, "template": template.name, "torch_dtype": dtype})
    side = fields["force_image_size"]
    write_json(
        folder / "preprocessor_config.json", {**_PREPROCESSOR, "crop_size": side, "size": side}
    )
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else None
    write_generation_config(folder, source.config, tokenizer, template)
    if tokenizer is not None:
        _write_tokenizer(folder, tokenizer, source.config.text_config.max_position_embeddings)


def _write_tokenizer(folder: Path, tokenizer: Any, max_positions: int) -> None:
    """Write tokenizer.json and a tokenizer_config.json that transformers 4 and 5 both read."""
    with saving(folder / "tokenizer.json"):
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    known = tokenizer.get_vocab()
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{role: getattr(tokenizer, role) for role in roles if getattr(tokenizer, role)},
            "additional_special_tokens": [token for token in _IMAGE_TOKENS if token in known],
            "clean_up_tokenization_spaces": False,
            "model_max_length": min(tokenizer.model_max_length, max_positions),
        },
    )
