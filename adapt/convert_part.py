"""Convert one part of a split: the work of a worker process.

A part's outcome is one file of the resume state, written whole or not at all:

    {"name": ..., "ledger": {...}, "skips": [...], "images": "made",
     "pictures": [[file, crc32], ...], "bytes": N, "crc32": C}
    record line
    record line
    ...

Waiting for the disk after every picture would take longer than making it; so nothing is flushed
here, and a part counts as done only when it and its pictures have their checksums. Any other is
done again. The runner flushes everything once, before it writes the records file.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import orjson

from adapt.check_record import check_line
from adapt.converter import Converter, load_converter
from adapt.images import ImageError, verify_image
from adapt.jsonl import write_bytes
from adapt.ledger import Ledger
from adapt.records import (
    NotInSplit,
    Part,
    Picture,
    Record,
    Result,
    Skip,
    UnitsRead,
    complete,
    inside,
    is_safe_path,
)

CACHED_SIZES = 4096
RESULTS_A_TASK = 256
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Job:
    """What every part of a split shares.

    Args:
        converter: The converter's name.
        raw: Raw folder.
        out: Dataset folder.
        split: Split being converted.
        options: The converter's own options.
        state: Folder of the part files.
        keep_pictures: Pictures that are there already were made whole by the same options.
    """

    converter: str
    raw: Path
    out: Path
    split: str
    options: Mapping[str, object]
    state: Path
    keep_pictures: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One part to do: a converter's own part, or a run of results it has yielded already.

    Args:
        index: Position in the split.
        name: The part's name.
        part: The part, when the converter has parts.
        results: The results, when it has none.
        limit: Raw units to take at most.
        counted: Whether the converter has counted its units; else the results are counted.
    """

    index: int
    name: str
    part: Part | None = None
    results: tuple[Result, ...] = ()
    limit: int | None = None
    counted: bool = True


@dataclass(frozen=True, slots=True)
class SkipEntry:
    """A line of skipped.jsonl."""

    split: str
    place: str
    reason: str
    detail: str
    units: int


@dataclass(slots=True)
class Outcome:
    """What became of a part."""

    name: str
    ledger: Ledger = field(default_factory=Ledger)
    skips: list[SkipEntry] = field(default_factory=list)
    images: str = ""
    pictures: list[tuple[str, int]] = field(default_factory=list)
    body: bytes = b""


class _Head(msgspec.Struct):
    """The first line of a part file."""

    name: str
    ledger: dict[str, Any]
    skips: list[SkipEntry]
    images: str
    pictures: list[tuple[str, int]]
    bytes: int
    crc32: int


def part_file(state: Path, index: int) -> Path:
    """Return the file of the part at `index`."""
    return state / f"{index:06d}.part"


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write a part file, whole or not at all."""
    head = {
        "name": outcome.name,
        "ledger": outcome.ledger.as_dict(),
        "skips": [asdict(skip) for skip in outcome.skips],
        "images": outcome.images,
        "pictures": outcome.pictures,
        "bytes": len(outcome.body),
        "crc32": zlib.crc32(outcome.body),
    }
    write_bytes(path, orjson.dumps(head) + b"\n" + outcome.body, sync=False)


def read_outcome(path: Path, name: str) -> Outcome | None:
    """Read a part file back; None when it is absent, damaged or of another part."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    if (head.name, head.bytes, head.crc32) != (name, len(body), zlib.crc32(body)):
        return None
    return Outcome(
        name=name,
        ledger=Ledger.from_dict(head.ledger),
        skips=head.skips,
        images=head.images,
        pictures=head.pictures,
        body=body,
    )


def has_pictures(outcome: Outcome, out: Path) -> bool:
    """Return whether the pictures that a part made are there, whole."""
    for name, crc in outcome.pictures:
        try:
            if zlib.crc32((out / name).read_bytes()) != crc:
                return False
        except FileNotFoundError:
            return False
    return True


class SizeCache:
    """Sizes of raw pictures already opened, the last `CACHED_SIZES` of them."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[int, int] | ImageError] = OrderedDict()

    def size(self, path: Path) -> tuple[int, int] | ImageError:
        """Return width and height in pixels, or why the picture cannot be used."""
        if path in self._known:
            self._known.move_to_end(path)
            return self._known[path]
        try:
            found: tuple[int, int] | ImageError = verify_image(path)
        except ImageError as error:
            found = error
        self._known[path] = found
        if len(self._known) > CACHED_SIZES:
            self._known.popitem(last=False)
        return found


@cache
def _converter(name: str) -> Converter:
    """Find a converter once in a process: reading the entry points takes milliseconds."""
    return load_converter(name)


def do_task(job: Job, task: Task, sizes: SizeCache) -> Ledger:
    """Convert a part, make its pictures, write its part file; return its ledger."""
    converter = _converter(job.converter)
    outcome = convert_results(job, converter, task, sizes)
    write_outcome(part_file(job.state, task.index), outcome)
    return outcome.ledger


def convert_results(job: Job, converter: Converter, task: Task, sizes: SizeCache) -> Outcome:
    """Turn a part's results into record lines, skips and counts."""
    root = converter.image_root(job.raw, job.options)
    collector = _Collector(job, _Pictures(job, root, sizes))
    if task.part is not None:
        found = converter.convert_part(job.raw, job.split, task.part, job.options)
        for result in first_units(found, task.limit):
            collector.take(result)
        return collector.finish(task.name, task.part.units if task.limit is None else None)
    for result in task.results:
        collector.take(result)
    read = sum(result.units for result in task.results if isinstance(result, UnitsRead))
    return collector.finish(task.name, read if task.counted else None)


def first_units(results: Iterable[Result], limit: int | None) -> Iterator[Result]:
    """Yield the results of the first `limit` raw units; of many lost at once, those within it."""
    if limit is None:
        yield from results
        return
    names: set[str] = set()
    anonymous = 0
    for result in results:
        if isinstance(result, Record):
            names.update(result.used_units())
        elif isinstance(result, Skip | NotInSplit):
            anonymous += result.units
        beyond = len(names) + anonymous - limit
        if beyond <= 0:
            yield result
            continue
        if isinstance(result, Skip | NotInSplit) and beyond < result.units:
            yield replace(result, units=result.units - beyond)
        return


def group_results(results: Iterator[Result], limit: int | None) -> Iterator[Task]:
    """Group the results of a converter without parts into tasks of whole raw units.

    A converter that yields `UnitsRead` has counted its units itself; else, or with a limit, they
    are counted from the results.
    """
    index, batch, last = 0, list[Result](), ""
    counted = False
    for result in first_units(results, limit):
        counted = counted or (isinstance(result, UnitsRead) and limit is None)
        unit = result.source_row() if isinstance(result, Record) else ""
        if len(batch) >= RESULTS_A_TASK and (not unit or unit != last):
            yield Task(index, f"results {index}", results=tuple(batch), counted=counted)
            index, batch = index + 1, []
        batch.append(result)
        last = unit
    if batch:
        yield Task(index, f"results {index}", results=tuple(batch), counted=counted)


class _Collector:
    """Gathers a part's results; see `adapt.ledger` for what is counted where."""

    def __init__(self, job: Job, pictures: _Pictures) -> None:
        self._job, self._pictures = job, pictures
        self._ledger = Ledger()
        self._skips: list[SkipEntry] = []
        self._lines: list[bytes] = []
        self._used: set[str] = set()
        self._failed: list[tuple[Record, str, str]] = []

    def take(self, result: Result) -> None:
        """Count a result, and complete it when it is a record."""
        match result:
            case Record():
                self._take_record(result)
            case Skip():
                self._skip(result)
            case NotInSplit():
                self._ledger.not_in_split += result.units
            case UnitsRead():
                pass

    def finish(self, name: str, units_in: int | None) -> Outcome:
        """Return the outcome, once every result has been taken; None: units are the results."""
        lost: set[str] = set()
        for record, reason, detail in self._failed:
            units = [unit for unit in record.used_units() if unit not in self._used]
            fresh = [unit for unit in units if unit not in lost]
            lost.update(fresh)
            if not units:
                # Its units stand in another record: no unit is lost, a record is.
                self._ledger.drop_reasons[reason] += 1
            self._skip(Skip(record.id, reason, detail, len(fresh)))
        self._ledger.used = len(self._used)
        ledger = self._ledger
        counted_here = ledger.used + ledger.skipped + ledger.not_in_split
        ledger.units_in = counted_here if units_in is None else units_in
        self._ledger.records = len(self._lines)
        return Outcome(
            name=name,
            ledger=self._ledger,
            skips=self._skips,
            images=self._pictures.kind,
            pictures=self._pictures.checksums,
            body=b"".join(self._lines),
        )

    def _take_record(self, record: Record) -> None:
        try:
            sizes = [self._pictures.size(image) for image in record.image]
        except ImageError as error:
            self._failed.append((record, error.reason, error.detail))
            return
        completed = complete(record, sizes, dataset=self._job.converter, split=self._job.split)
        line = _ENCODER.encode(completed)
        if problems := check_line(line).problems:
            # Such as a text with half a box in it: what is written passes `adapt check`.
            detail = "; ".join(map(str, problems))
            self._failed.append((record, "breaks-contract", detail))
            return
        self._lines.append(line + b"\n")
        self._used.update(record.used_units())
        self._ledger.drop_reasons.update(dropped.reason for dropped in record.dropped)
        self._ledger.notes.update(record.notes)

    def _skip(self, skip: Skip) -> None:
        self._ledger.skipped += skip.units
        if skip.units:
            self._ledger.skip_reasons[skip.reason] += skip.units
        self._skips.append(
            SkipEntry(self._job.split, skip.place, skip.reason, skip.detail, skip.units)
        )


class _Pictures:
    """Sizes of a part's pictures; makes those that do not exist yet, each once."""

    def __init__(self, job: Job, root: Path, sizes: SizeCache) -> None:
        self._job, self._root, self._sizes = job, root, sizes
        self._made: dict[str, tuple[int, int] | ImageError] = {}
        self.kind = ""
        self.checksums: list[tuple[str, int]] = []

    def size(self, image: str | Picture) -> tuple[int, int]:
        """Return width and height in pixels of a picture as the model sees it.

        Raises:
            ImageError: It is missing, damaged, or cannot be made.
        """
        kind = "raw" if isinstance(image, str) else "made"
        if self.kind not in ("", kind):
            raise RuntimeError(
                f"converter {self._job.converter} yields both raw paths and pictures to be made "
                f"({image}); a dataset has one root"
            )
        self.kind = kind
        found = self._raw(image) if isinstance(image, str) else self._make(image)
        if isinstance(found, ImageError):
            raise found
        return found

    def _raw(self, image: str) -> tuple[int, int] | ImageError:
        path = self._root / image
        if not is_safe_path(image) or not inside(self._root, path):
            return ImageError("unsafe-path", f"{image} leaves {self._root}; expected a path in it")
        return self._sizes.size(path)

    def _make(self, picture: Picture) -> tuple[int, int] | ImageError:
        name = picture.file
        if name not in self._made:
            try:
                self._made[name] = self._make_file(picture)
            except ImageError as error:
                self._made[name] = error
        return self._made[name]

    def _make_file(self, picture: Picture) -> tuple[int, int]:
        path = self._job.out / picture.file
        if not is_safe_path(picture.file):
            raise ImageError("unsafe-path", f"{picture.file} leaves the dataset's folder")
        if self._job.keep_pictures and path.exists():
            data = path.read_bytes()
        else:
            data = picture.make()
            write_bytes(path, data, sync=False)
        self.checksums.append((picture.file, zlib.crc32(data)))
        return picture.size
