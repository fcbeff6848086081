"""DriveLM's files: the annotations of a split, the views of a frame.

RAW/v1_1_train_nus.json                       or up to two folders deeper
RAW/nuscenes/samples/CAM_FRONT/....jpg        or in RAW/data, or beside the annotations' folder
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.converters._raw import find_file
from adapt.coords import NUSCENES
from adapt.errors import SourceError, UsageError
from adapt.images import ImageError, safe_file
from adapt.jsonl import require_file
from adapt.records import SkipError

REPOSITORY = "https://github.com/OpenDriveLab/DriveLM"
FILE_NAMES = {"train": "v1_1_train_nus.json", "val": "v1_1_val_nus_q_only.json"}
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val)(?![a-z])")


class FrameError(SkipError):
    """A whole frame cannot be converted."""


def annotation_file(raw: Path, split: str, annotations: Path | None) -> Path:
    """Return the annotation file of a split.

    Raises:
        SourceError: It is missing, a folder or empty.
    """
    if annotations is not None:
        require_file(annotations)
        return annotations
    name = FILE_NAMES[split]
    # `v1_1_train_nus.sample.json` is taken too, when nothing has the official name.
    found = find_file(raw, (name, f"{name.removesuffix('.json')}.*.json"))
    if found is None:
        raise SourceError(
            f"{raw}: no {name} in it or up to two folders deeper; get it from {REPOSITORY}, "
            f"or name another file with --annotations"
        )
    require_file(found)
    return found


def present_splits(raw: Path, annotations: Path | None) -> list[str]:
    """Return the splits to convert when none is asked for.

    Raises:
        SourceError: `annotations` is missing, a folder or empty.
        UsageError: The name of `annotations` has neither `train` nor `val` in it.
    """
    if annotations is None:
        patterns = {
            split: (name, f"{name.removesuffix('.json')}.*.json")
            for split, name in FILE_NAMES.items()
        }
        return [split for split, names in patterns.items() if find_file(raw, names) is not None]
    require_file(annotations)
    found = set(_SPLIT_IN_NAME.findall(annotations.name.lower()))
    if len(found) != 1:
        raise UsageError(
            f"{annotations}: its name does not say which split it is (train or val); "
            f"give --split train or --split val"
        )
    return list(found)


def view_files(
    raw: Path, annotations: Path, paths: Mapping[str, Any]
) -> tuple[tuple[str, Path], ...]:
    """Return (camera, file) of every camera, in the order of the mosaic.

    Args:
        raw: Raw folder, which no view may leave.
        annotations: Annotation file.
        paths: `image_paths` of a frame.

    Raises:
        FrameError: A camera has no path.
        ImageError: A view is missing, empty or outside the raw folder.
    """
    views = []
    for camera in (camera for row in NUSCENES.cameras for camera in row):
        if camera not in paths:
            raise FrameError("view-missing", f"image_paths has no {camera}")
        if not isinstance(paths[camera], str):
            raise FrameError("malformed-frame", f"image_paths[{camera}] is {paths[camera]!r}")
        views.append((camera, _view_file(raw, annotations, paths[camera])))
    return tuple(views)


def _view_file(raw: Path, annotations: Path, path: str) -> Path:
    """Return the file of a view: below the raw folder, `data`, or where the annotations lie.

    Raises:
        ImageError: It is missing, empty or outside the raw folder.
    """
    # The official paths start beside the folder of annotations; any other `..` is refused.
    relative = path.removeprefix("../") if path.startswith("../nuscenes/") else path
    prefixes = ["", "data/"]
    if annotations.parent.is_relative_to(raw):
        folder = annotations.parent.relative_to(raw)
        if ".." not in folder.parts:
            prefixes += [f"{folder}/", f"{folder.parent}/"]
    for prefix in prefixes:
        file = safe_file(raw, f"{prefix}{relative}" if relative else "")
        # Unlike `Path.is_file`, this takes a name that is too long for the disk.
        if os.path.isfile(file):
            if not file.stat().st_size:
                raise ImageError("image-empty", f"{file}: the file has 0 bytes")
            return file
    raise ImageError("image-missing", f"{raw / relative}: no such file")
