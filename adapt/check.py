"""Check records: JSON Schema, then what it can't say; every problem with file, line and place.

    data/domain/drivelm/train.jsonl:1207: $.conversations found 1 <image>, expected 2, one for ...

What lies beside the records is checked too: dataset.json, its ledger and the sums of its files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from adapt.check_images import Pictures
from adapt.check_record import check_line
from adapt.dataset import MANIFEST, SKIPPED, Dataset, SplitFile, open_dataset
from adapt.errors import CheckFailed
from adapt.jsonl import read_json, read_lines
from adapt.ledger import Ledger
from adapt.problems import Problem, schema_problems, show
from adapt.progress import progress
from adapt.records import RecordLine

BLOCK = 1 << 20
BAR_FROM_BYTES = 200 << 20
BOM = b"\xef\xbb\xbf"
OTHER_KINDS = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"[": "a JSON list",
}
_FILE_BITS = 24


@dataclass(slots=True)
class Report:
    """Prints problems as they come and counts them."""

    problems: int = 0

    def add(self, file: Path, problem: Problem | str, line: int | None = None) -> None:
        """Print a problem of a file, of a line of it when one is given."""
        self.problems += 1
        print(f"{file}:{line}: {problem}" if line else f"{file}: {problem}")


@dataclass(slots=True)
class _Tally:
    """What the files of a dataset hold."""

    files: list[Path] = field(default_factory=list)
    records: dict[Path, int] = field(default_factory=dict)
    answerless: int = 0
    pictures: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    def first_place(self, identifier: str, line: int) -> str | None:
        """Note an id of the current file; return where it stood before, if it did."""
        here = line << _FILE_BITS | len(self.files) - 1
        first = self.seen.setdefault(identifier, here)
        if first == here:
            return None
        return f"{self.files[first & (1 << _FILE_BITS) - 1]}:{first >> _FILE_BITS}"


def check_paths(paths: Iterable[Path], *, images: bool) -> None:
    """Check datasets and print every problem, or one line for each that has none.

    Args:
        paths: Dataset folders or records files.
        images: Open every picture too, and compare its size.

    Raises:
        CheckFailed: There are problems; the message has their number.
        SourceError: There is nothing at a path.
    """
    report = Report()
    for path in paths:
        before = report.problems
        tally = _check_dataset(path, report, images=images)
        if tally is not None and report.problems == before:
            print(f"{path}: {_summary(tally, images=images)}")
    if report.problems:
        raise CheckFailed(f"{_number(report.problems, 'problem')} found")


def _summary(tally: _Tally, *, images: bool) -> str:
    records = _number(sum(tally.records.values()), "record")
    counts = [f"{records} in {_number(len(tally.files), 'file')}"]
    if images:
        counts.append(_number(tally.pictures, "picture"))
    if tally.answerless:
        counts.append(f"{tally.answerless} without an answer")
    return ", ".join(counts) + "; no problems"


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _check_dataset(path: Path, report: Report, *, images: bool) -> _Tally | None:
    manifest = (path if path.is_dir() else path.parent) / MANIFEST
    if manifest.exists():
        found = schema_problems(read_json(manifest), "dataset")
        for problem in found:
            report.add(manifest, problem)
        if found:
            # What it says of root and files cannot be trusted.
            return None
    dataset = open_dataset(path)
    tally = _Tally()
    pictures = Pictures(dataset.root) if images else None
    for files in dataset.splits.values():
        for file in files:
            _check_file(file, tally, pictures, report)
    if dataset.manifest is not None and path.is_dir():
        lost = _skipped_units(dataset.folder / SKIPPED, report)
        for problem in _ledger_problems(dataset, dataset.manifest, tally, lost):
            report.add(manifest, problem)
    if pictures is not None:
        tally.pictures = len(pictures)
        for place, line, problem in pictures.problems():
            report.add(place, problem, line)
    return tally


def _check_file(file: SplitFile, tally: _Tally, pictures: Pictures | None, report: Report) -> None:
    """Check the lines of a records file, and the file against what dataset.json says of it."""
    path = file.path
    tally.files.append(path)
    tally.records[path] = 0
    if not path.is_file():
        report.add(path, "found no such file, expected the records that dataset.json names")
        return
    if (kind := _other_kind(path)) is not None:
        report.add(path, f"found {kind}, expected UTF-8 text with one JSON object a line")
        return
    digest = hashlib.sha256()
    number = 0
    ends = _LineEnds()
    for block in _blocks(path):
        if file.sha256 is not None:
            digest.update(block)
        for line in ends.split(block, number):
            number += 1
            record = _check_line(path, number, line, tally, report)
            if record is not None and pictures is not None:
                pictures.add(path, number, record)
    for place, problem in ends.problems(number):
        report.add(path, problem, place)
    for problem in _sum_problems(file, tally.records[path], digest.hexdigest()):
        report.add(path, problem)


def _check_line(
    path: Path, number: int, line: bytes, tally: _Tally, report: Report
) -> RecordLine | None:
    if not line or line.isspace():
        report.add(path, "found a blank line, expected a record", number)
        return None
    tally.records[path] += 1
    checked = check_line(line)
    for problem in checked.problems:
        report.add(path, problem, number)
    if checked.id and (first := tally.first_place(checked.id, number)):
        expected = f"an id of its own (first at {first})"
        report.add(path, Problem("$.id", f"{show(checked.id)} again", expected), number)
    if checked.record is not None:
        tally.answerless += not checked.record.has_answer()
    return checked.record


def _other_kind(path: Path) -> str | None:
    """Return what a file is when its first bytes say that it holds no lines of JSON."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "an empty file"
    return next((kind for magic, kind in OTHER_KINDS.items() if head.startswith(magic)), None)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield a file in blocks of whole lines, about a mebibyte each."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < BAR_FROM_BYTES:
            while block := file.read(BLOCK):
                yield block + file.readline()
            return
        with progress(f"check {path}", size // BLOCK, "MiB") as advance:
            while block := file.read(BLOCK):
                yield block + file.readline()
                advance(1)


class _LineEnds:
    """What is wrong with how the lines of a file begin and end, told once a file."""

    def __init__(self) -> None:
        self._bom = self._whole = False
        self._crlf_first = self._crlf_lines = 0

    def split(self, block: bytes, before: int) -> list[bytes]:
        """Return the lines of a block, without their ends; `before` lines went ahead of it."""
        if before == 0 and block.startswith(BOM):
            self._bom = True
            block = block[len(BOM) :]
        lines = block.split(b"\n")
        self._whole = lines[-1] == b""
        if self._whole:
            lines.pop()
        if b"\r\n" in block:
            returns = [index for index, line in enumerate(lines) if line.endswith(b"\r")]
            self._crlf_first = self._crlf_first or before + returns[0] + 1
            self._crlf_lines += len(returns)
        return lines

    def problems(self, last: int) -> Iterator[tuple[int, str]]:
        """Yield line number and problem; `last` is the number of the last line."""
        if self._bom:
            yield 1, "found a byte order mark, expected UTF-8 without one"
        if self._crlf_first:
            count = f" ({self._crlf_lines} such lines)"
            yield self._crlf_first, f"found an end of CR LF, expected LF alone{count}"
        if not self._whole:
            yield last, "found no newline at the end of the file, expected one; is it cut off?"


def _sum_problems(file: SplitFile, records: int, sha256: str) -> Iterator[str]:
    if file.records is not None and file.records != records:
        yield f"found {records} records, expected {file.records}, as dataset.json says"
    if file.sha256 is not None and file.sha256 != sha256:
        yield f"found sha256 {sha256[:12]}..., expected {file.sha256[:12]}..., as dataset.json says"


def _ledger_problems(
    dataset: Dataset, manifest: dict[str, Any], tally: _Tally, lost: Counter[str]
) -> Iterator[Problem]:
    """Check that the numbers of dataset.json add up, and agree with the files beside it."""
    for split, entry in manifest["splits"].items():
        place = f"$.splits.{split}.ledger"
        ledger = Ledger.from_dict(entry["ledger"])
        if not ledger.balances():
            expected = "units_in = used + skipped + not_in_split"
            yield Problem(place, ledger.lines()[0].partition(";")[0], expected)
        held = sum(tally.records.get(file.path, 0) for file in dataset.splits[split])
        reasons = ledger.skip_reasons.total()
        objects = entry["ledger"]["objects_dropped"]
        for key, found, wanted, as_in in (
            ("records", ledger.records, held, "as the files hold"),
            ("skipped", ledger.skipped, lost.get(split, 0), f"as {SKIPPED} holds"),
            ("skip_reasons", reasons, ledger.skipped, "as skipped says"),
            ("objects_dropped", objects, ledger.dropped, "as drop_reasons says"),
        ):
            if found != wanted:
                yield Problem(f"{place}.{key}", str(found), f"{wanted}, {as_in}")


class _Skipped(msgspec.Struct):
    split: str
    units: int


def _skipped_units(path: Path, report: Report) -> Counter[str]:
    """Return the units that skipped.jsonl counts in each split."""
    units: Counter[str] = Counter()
    if not path.exists() or not path.stat().st_size:
        return units
    decode = msgspec.json.Decoder(_Skipped).decode
    for number, line in read_lines(path):
        try:
            entry = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            report.add(path, f"found no line of a converter ({error}), expected one", number)
            continue
        units[entry.split] += entry.units
    return units
