"""The sources of a mix: find the datasets, read where each record starts, refuse what is no use."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from adapt.dataset import SKIPPED, Dataset, SplitFile, open_dataset
from adapt.errors import RecordError, SourceError, UsageError
from adapt.jsonl import path_text, require_file, sha256_file
from adapt.mix_draw import Indices
from adapt.records import RecordLine

SPLIT = "train"
SIDES = ("general", "domain")
_BUFFER = 1 << 20

Found = tuple[Path, Dataset]
"""A dataset, and the path it was found by."""


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A records file as it lies on the disk.

    Args:
        path: The file.
        sha256: Of its content.
        bytes: Its size.
        offsets: [records] int64, where each record's line starts.
    """

    path: Path
    sha256: str
    bytes: int
    offsets: Indices


@dataclass(frozen=True, slots=True)
class MixSide:
    """A dataset on one side of the mix, its records files read."""

    dataset: Dataset
    side: str
    files: tuple[ScannedFile, ...]

    @property
    def rows(self) -> int:
        """Records in all its files."""
        return sum(len(file.offsets) for file in self.files)


class _Turn(msgspec.Struct):
    value: str


class _Answered(msgspec.Struct):
    conversations: list[_Turn]


_RECORD = msgspec.json.Decoder(RecordLine)
_ANSWERED = msgspec.json.Decoder(_Answered)


def find_datasets(side: str, asked: Sequence[Path]) -> list[Found]:
    """Return the datasets of a side: those asked for, or every one in data/SIDE.

    Raises:
        SourceError: There is none, or one has no train split.
    """
    if asked:
        return [(path, open_dataset(path)) for path in asked]
    home = Path("data") / side
    found = [(folder, open_dataset(folder)) for folder in _dataset_folders(home)]
    with_train = [(folder, dataset) for folder, dataset in found if SPLIT in dataset.splits]
    for folder, dataset in found:
        if SPLIT not in dataset.splits:
            print(f"{folder}: left out, no {SPLIT} split (has {', '.join(dataset.splits)})")
    if not with_train:
        example = "drivelm" if side == "domain" else "llava"
        state = "holds no dataset" if home.is_dir() else "no such folder"
        raise SourceError(
            f"{home}: {state}; expected {home}/NAME/{SPLIT}.jsonl, as adapt convert makes it "
            f"(such as adapt convert {example}); or name datasets with --{side}"
        )
    return with_train


def _dataset_folders(home: Path) -> list[Path]:
    """Return the folders below `home` that hold records, in order of their names."""
    return [
        folder
        for folder in (sorted(home.iterdir()) if home.is_dir() else [])
        if folder.is_dir()
        and not folder.name.startswith(".")
        and any(file.name != SKIPPED for file in folder.glob("*.jsonl"))
    ]


def tell_apart(sides: dict[str, list[Found]]) -> dict[str, list[Found]]:
    """Return the datasets of both sides, those of one name called as their folders are."""
    names = Counter(dataset.name for listed in sides.values() for _, dataset in listed)

    def called(dataset: Dataset) -> Dataset:
        if names[dataset.name] == 1:
            return dataset
        return replace(dataset, name=dataset.folder.resolve().name)

    return {
        side: [(path, called(dataset)) for path, dataset in listed]
        for side, listed in sides.items()
    }


def scan_sides(sides: dict[str, list[Found]]) -> list[MixSide]:
    """Read the train files of every dataset, general ones first.

    Raises:
        UsageError: Two datasets have one name, one's name is no UTF-8, or a file is given twice.
        RecordError: A file holds what is no record, or a record without an answer, or is not the
            one that dataset.json describes.
    """
    named: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    wanted: list[tuple[str, Dataset, list[SplitFile]]] = []
    for side in SIDES:
        for path, dataset in sides.get(side, []):
            path_text(dataset.name)
            if dataset.name in named:
                raise UsageError(
                    f"{path}: is called {dataset.name}, and so is {named[dataset.name]}; "
                    f"give each dataset once, and its folder a name of its own"
                )
            named[dataset.name] = path
            files = _train_files(path, dataset)
            _refuse_twice(files, dataset.name, owners)
            wanted.append((side, dataset, files))
    return _scan_all(wanted)


def _scan_all(wanted: list[tuple[str, Dataset, list[SplitFile]]]) -> list[MixSide]:
    every = [file.path for _, _, files in wanted for file in files]
    for path in every:
        require_file(path)
    # Hashing frees the interpreter, so it runs beside the reading of lines.
    hashing = ThreadPoolExecutor(1)
    try:
        digests = {path: hashing.submit(sha256_file, path) for path in every}
        return [
            MixSide(dataset, side, tuple(_scan(file, digests[file.path]) for file in files))
            for side, dataset, files in wanted
        ]
    finally:
        hashing.shutdown(cancel_futures=True)


def _train_files(path: Path, dataset: Dataset) -> list[SplitFile]:
    if path.is_file():
        return [file for files in dataset.splits.values() for file in files]
    if SPLIT not in dataset.splits:
        raise SourceError(
            f"{path}: holds no {SPLIT} split (has {', '.join(dataset.splits)}); convert one, or "
            f"name the records file to take another"
        )
    return dataset.splits[SPLIT]


def _refuse_twice(files: Iterable[SplitFile], name: str, owners: dict[Path, str]) -> None:
    for file in files:
        real = file.path.resolve()
        if real in owners:
            raise UsageError(
                f"{file.path}: is given twice, in {owners[real]} and in {name}; "
                f"--repeat {name}=2 repeats a dataset"
            )
        owners[real] = name


def _scan(file: SplitFile, digest: Future[str]) -> ScannedFile:
    path = file.path
    lengths = read_lengths(path)
    ends = np.cumsum(np.frombuffer(lengths, np.int64))
    sha256 = digest.result()
    if file.sha256 not in (None, sha256) or file.records not in (None, len(lengths)):
        raise RecordError(
            f"{path}: is not the file that dataset.json describes ({len(lengths)} records, "
            f"sha256 {sha256[:12]}...; expected {file.records}, {str(file.sha256)[:12]}...); "
            f"it was changed after its conversion: convert it again"
        )
    offsets = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return ScannedFile(path, sha256, int(ends[-1]), offsets)


def read_lengths(path: Path) -> array[int]:
    """Return the length in bytes of each line of a records file, its end included.

    Raises:
        RecordError: A line is no record, or a record has no answer.
    """
    lengths = array("q")
    decode = _ANSWERED.decode
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            _RECORD.decode(file.readline())
            file.seek(0)
            for line in file:
                lengths.append(len(line))
                if not decode(line).conversations[-1].value:
                    raise _no_answer(path, len(lengths))
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError, RecursionError) as error:
        number = len(lengths) or 1
        raise RecordError(
            f"{path}:{number}: not a record ({error}); run adapt check {path}"
        ) from error
    return lengths


def _no_answer(path: Path, number: int) -> RecordError:
    return RecordError(
        f"{path}:{number}: a record without an answer, as test splits have; "
        f"adapt mix takes records to train on: leave this file out"
    )
