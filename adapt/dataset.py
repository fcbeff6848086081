"""A dataset folder: records by split, and dataset.json that says where they come from.

    data/domain/drivelm/
        dataset.json      converter, options, root, files, ledger; schemas/dataset.schema.json
        train.jsonl       records; or shards train-00000-of-00016.jsonl
        skipped.jsonl     what was lost, with place and reason
        images/           pictures that the converter made

A folder made by hand needs no dataset.json: its name is the dataset's, its root itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from adapt.errors import RecordError, SourceError
from adapt.jsonl import read_json, require_file
from adapt.records import is_safe_path

MANIFEST = "dataset.json"
SKIPPED = "skipped.jsonl"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class SplitFile:
    """A records file; what dataset.json says of it, None where there is no dataset.json."""

    path: Path
    sha256: str | None = None
    records: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset.

    Args:
        name: Its name in mixes and reports.
        folder: Where its records lie.
        root: Where its image paths start.
        role: domain, general, or empty when unknown.
        domain: Such as `driving`; empty when unknown.
        splits: Files by split, in order.
        manifest: The whole of dataset.json, None when there is none.
    """

    name: str
    folder: Path
    root: Path
    role: str
    domain: str
    splits: dict[str, list[SplitFile]]
    manifest: dict[str, Any] | None = None


class _File(msgspec.Struct):
    path: str
    sha256: str
    records: int


class _Entry(msgspec.Struct):
    files: list[_File]


class _Manifest(msgspec.Struct):
    """What is read of dataset.json here; the schema says all that should be in it."""

    format: object
    name: str
    root: str
    role: str
    splits: dict[str, _Entry]
    domain: str = ""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return dataset.json of a folder, None when there is none.

    Raises:
        RecordError: It is not what schemas/dataset.schema.json asks for.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    value = read_json(path)
    try:
        manifest = msgspec.convert(value, _Manifest)
    except msgspec.ValidationError as error:
        raise RecordError(f"{path}: {error}; convert the dataset again") from error
    if manifest.format != FORMAT:
        raise RecordError(
            f"{path}: format is {manifest.format!r}, this version reads {FORMAT}; "
            f"convert the dataset again"
        )
    for file in (file for entry in manifest.splits.values() for file in entry.files):
        if not is_safe_path(file.path):
            raise RecordError(
                f"{path}: names the records file {file.path!r}, expected one in this folder; "
                f"convert the dataset again"
            )
    return dict(value)


def open_dataset(path: Path) -> Dataset:
    """Open a dataset folder, or a single records file as a dataset of one split.

    Raises:
        SourceError: There is nothing there, or no records in it.
        RecordError: dataset.json is damaged.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such dataset; adapt convert makes one")
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    splits = _splits(folder, manifest)
    if path.is_file():
        require_file(path)
        known = [file for files in splits.values() for file in files if file.path == path]
        splits = {_split_of(path): known or [SplitFile(path)]}
    if not splits:
        raise SourceError(f"{path}: holds no records; expected SPLIT.jsonl (such as train.jsonl)")
    manifest = manifest or None
    return Dataset(
        name=str(manifest["name"]) if manifest else _name_without_manifest(path),
        folder=folder,
        root=folder / manifest["root"] if manifest else folder,
        role=str(manifest["role"]) if manifest else "",
        domain=str(manifest.get("domain", "")) if manifest else "",
        splits=splits,
        manifest=manifest,
    )


def _name_without_manifest(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _split_of(path: Path) -> str:
    return path.stem.split("-", 1)[0]


def _splits(folder: Path, manifest: dict[str, Any] | None) -> dict[str, list[SplitFile]]:
    if manifest is not None:
        return {
            split: [
                SplitFile(folder / file["path"], file["sha256"], file["records"])
                for file in entry["files"]
            ]
            for split, entry in manifest["splits"].items()
        }
    splits: dict[str, list[SplitFile]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.name != SKIPPED and not path.name.startswith("."):
            splits.setdefault(_split_of(path), []).append(SplitFile(path))
    return splits
