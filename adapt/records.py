"""Records: the one contract between the steps.

A converter yields `Record`, `Skip` and `NotInSplit`, one result or more for each raw unit.
The runner completes a `Record` (sizes, source) and writes it as a `RecordLine`, one JSON object
a line, in InternVL's multi-image layout:

    {"id": "rsvqa_lr/train/12", "image": ["Images_LR/3.tif"], "width_list": [256],
     "height_list": [256], "conversations": [{"from": "human", "value": "<image>\\nHow many?"},
     {"from": "gpt", "value": "4"}], "task": "vqa",
     "source": {"dataset": "rsvqa_lr", "split": "train", "row": "12"}, "extra": ""}

`schemas/record.schema.json` is the truth about that line; `adapt.check` says what a schema can't.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    import pyarrow

IMAGE_PLACEHOLDER = "<image>"

Speaker = Literal["human", "gpt"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's text in a record."""

    speaker: Speaker
    text: str


@runtime_checkable
class Picture(Protocol):
    """A picture that does not exist yet; the runner makes its file once, in a worker.

    Implementations are small frozen dataclasses (`adapt.mosaic.Mosaic`, ...).
    """

    @property
    def file(self) -> str:
        """Path of the file to make, relative to the dataset's root, unique to this content."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the file to make."""
        ...

    def make(self) -> bytes:
        """Return the encoded file.

        Raises:
            adapt.images.ImageError: A picture it is made from is missing or damaged.
        """
        ...


@dataclass(frozen=True, slots=True)
class Dropped:
    """An object left out of a list inside a record, with its reason; counted apart from rows."""

    place: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation made from a raw unit.

    Args:
        id: Unique in the dataset: `dataset/split/row`.
        image: Paths relative to the raw folder, or pictures to be made; empty for text only.
        turns: Alternating, human first; as many `<image>` in them as images.
        task: classification, grounding, region, multiview, video, vqa, caption, conversation, ...
        row: The raw unit it stands for; empty: what follows the second `/` of the id.
        units: The raw units it uses, when not just `row` (a record that joins several).
        extra: Whatever else the converter knows, as one string of JSON; empty for nothing.
        dropped: Objects left out of a list in this record.
        notes: Reasons to count in the ledger without losing anything (`answer-outside-pool`).
    """

    id: str
    image: tuple[str | Picture, ...]
    turns: tuple[Turn, ...]
    task: str = "vqa"
    row: str = ""
    units: tuple[str, ...] = ()
    extra: str = ""
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()

    def source_row(self) -> str:
        """Return the raw unit's name: `row`, or the id without dataset and split."""
        return self.row or self.id.split("/", 2)[-1]

    def used_units(self) -> tuple[str, ...]:
        """Return the names of the raw units this record uses."""
        return self.units or (self.source_row(),)


@dataclass(frozen=True, slots=True)
class Skip:
    """A raw unit (or `units` of them) that gives no record, with its place and reason.

    Args:
        place: Where in the raw files: `train.json: scene 1f.. frame 2a.. question 3`.
        reason: A short key to count by: `image-missing`.
        detail: What was found and expected.
        units: How many raw units are lost.
    """

    place: str
    reason: str
    detail: str
    units: int = 1


class SkipError(Exception):
    """What a converter raises where a raw unit turns out to give no record, and catches for a Skip.

    Args:
        reason: A short key to count by.
        detail: What was found and expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class NotInSplit:
    """A raw unit (or `units` of them) that was read but belongs to another split."""

    place: str
    units: int = 1


@dataclass(frozen=True, slots=True)
class UnitsRead:
    """How many raw units were just read: yielded where a list is read, before any filter."""

    units: int


Result = Record | Skip | NotInSplit | UnitsRead


@dataclass(frozen=True, slots=True)
class Part:
    """An independent piece of a raw split, read on its own by `convert_part`.

    Args:
        name: Unique and stable within the split; the order of the parts is that of the records.
        units: Raw units in it, counted while reading, before any filter.
        payload: What `convert_part` needs to read it (a byte range, a list of rows); picklable.
    """

    name: str
    units: int
    payload: object


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"speaker": "from"}):
    """A turn as stored: `{"from": "human", "value": "..."}`."""

    speaker: Speaker
    value: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record comes from: dataset, split, raw unit."""

    dataset: str
    split: str
    row: str


class RecordLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as stored, keys in this order. See the module docstring."""

    id: str
    image: list[str]
    width_list: list[int]
    height_list: list[int]
    conversations: list[Message]
    task: str
    source: Source
    extra: str

    def has_answer(self) -> bool:
        """Return False for a record of a test split, whose last `gpt` value is empty."""
        return bool(self.conversations[-1].value)


def complete(
    record: Record, sizes: Sequence[tuple[int, int]], *, dataset: str, split: str
) -> RecordLine:
    """Return the stored form of `record`; `sizes` are (width, height) as the model sees them."""
    return RecordLine(
        id=record.id,
        image=[image if isinstance(image, str) else image.file for image in record.image],
        width_list=[width for width, _ in sizes],
        height_list=[height for _, height in sizes],
        conversations=[Message(turn.speaker, turn.text) for turn in record.turns],
        task=record.task,
        source=Source(dataset, split, record.source_row()),
        extra=record.extra,
    )


def arrow_schema() -> pyarrow.Schema:
    """Return the Arrow schema of a record; read with it, never with a guessed one."""
    import pyarrow as pa

    message = pa.struct([("from", pa.string()), ("value", pa.string())])
    source = pa.struct([("dataset", pa.string()), ("split", pa.string()), ("row", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.list_(pa.string())),
            ("width_list", pa.list_(pa.int32())),
            ("height_list", pa.list_(pa.int32())),
            ("conversations", pa.list_(message)),
            ("task", pa.string()),
            ("source", source),
            ("extra", pa.string()),
        ]
    )


def is_safe_path(path: str) -> bool:
    """Return whether `path` is relative and stays below the folder it is joined to.

    >>> is_safe_path("images/a.jpg"), is_safe_path("../a.jpg"), is_safe_path("/a.jpg")
    (True, False, False)
    """
    if not path or path.startswith(("/", "~")) or "\\" in path or "\0" in path or ":" in path[:2]:
        return False
    return ".." not in path.split("/")


def inside(root: Path, path: Path) -> bool:
    """Return whether `path`, links followed, lies below `root`."""
    # Unlike `Path.resolve`, this takes a link that leads back to itself.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
