"""config.json of a checkpoint folder: read it, and tell the layouts apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapt.errors import CheckpointError, SourceError
from adapt.jsonl import read_json
from adapt.models.config_maps import checked_model_config
from adapt.models.presets import model_class


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Put the folder in front of a CheckpointError raised inside, unless it is there already."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        if message.startswith(str(folder)):
            raise
        joint = "/" if message.startswith("config.json") else ": "
        raise CheckpointError(f"{folder}{joint}{message}") from error


def resolve_folder(folder: Path) -> Path:
    """Return the checkpoint folder meant: a run folder's is `model/` in it.

    Raises:
        CheckpointError: There is no such folder, or it holds no checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder, expected a checkpoint")
    if (folder / "config.json").exists():
        return folder
    if (folder / "model" / "config.json").exists():
        return folder / "model"
    if any((place / "adapter_config.json").exists() for place in (folder, folder / "adapter")):
        raise CheckpointError(
            f"{folder}: holds a LoRA adapter, no whole model; "
            f"adapt models merge {folder} BASE --out DIR makes one"
        )
    raise CheckpointError(f"{folder}: has no config.json, so it is not a checkpoint")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        value = read_json(path)
    except SourceError as error:
        raise CheckpointError(f"{error}; expected a checkpoint folder") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of OpenGVLab's own layout."""
    return config.get("model_type") == "internvl_chat"


def native_config(fields: dict[str, Any]) -> Any:
    """Return the transformers config of a native config.json.

    Raises:
        CheckpointError: transformers refuses it.
    """
    architecture = "mono" if fields.get("model_type") == "mono_internvl" else "internvl"
    config_class = model_class(architecture).config_class
    return checked_model_config(config_class.from_dict, config_dict=fields)


def is_same_setting(one: Any, other: Any) -> bool:
    """Whether two config values are the same; JSON has no tuples: (448, 448) is [448, 448]."""
    return bool(_listed(one) == _listed(other))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
