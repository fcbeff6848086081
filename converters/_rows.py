"""Rows of JSON lists and JSONL files: which files hold conversations, and rows a chunk at a time.

A file is mapped, not loaded: its rows are found by their places, and parsed a chunk at a time by
whoever converts them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from adapt.converters._dialects import dialect_of
from adapt.converters._raw import BOM, MappedJson, Slice, refuse_utf16
from adapt.jsonl import require_file

SUFFIXES = (".json", ".jsonl")
_DEEPEST = 2
_HEAD_BYTES = 1 << 16
_LONGEST_ROW = 1 << 24


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file.

    Args:
        slice: Where they stand.
        first: Number of the first: index in a JSON list, line of a JSONL file.
        rows: How many there are.
        lines: Whether they are lines of JSONL.
    """

    slice: Slice
    first: int
    rows: int
    lines: bool

    def read(self, path: Path) -> Iterator[tuple[int, Any]]:
        """Yield number and value of each row; a line that is no JSON comes as its error.

        Raises:
            SourceError: The file has changed.
        """
        for number, data in self.read_raw(path):
            yield number, _parse(data)

    def read_raw(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yield number and JSON of each row.

        Raises:
            SourceError: The file has changed.
        """
        data = self.slice.read(path)
        if self.lines:
            for number, line in enumerate(data.split(b"\n"), start=self.first):
                if line.strip():
                    yield number, line
            return
        rows = msgspec.json.decode(b"[" + data + b"]", type=list[msgspec.Raw])
        for number, raw in enumerate(rows, start=self.first):
            yield number, bytes(raw)


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return error


def conversation_files(raw: Path) -> tuple[list[Path], list[Path]]:
    """Return the JSON files of a folder, and two deep: those that hold conversations, and others.

    Raises:
        SourceError: One is empty or UTF-16.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    for folder, names, files in os.walk(raw):
        depth = len(Path(folder).relative_to(raw).parts)
        names[:] = [n for n in names if not n.startswith(".")] if depth < _DEEPEST else []
        for name in files:
            path = Path(folder) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                found[0 if holds_conversations(path) else 1].append(path)
    return sorted(found[0]), sorted(found[1])


def holds_conversations(path: Path) -> bool:
    """Return whether a file's first row is a conversation, or seems so where it is cut off.

    Raises:
        SourceError: The file is missing, a folder or empty.
    """
    row = first_row(path)
    if row is not None:
        return dialect_of(row) is not None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return any(key in head for key in (b'"conversations"', b'"messages"', b'"instruction"'))


def first_row(path: Path) -> Any:
    """Return the first row of a JSON list or JSONL file, None when there is none to read.

    Raises:
        SourceError: The file is missing, a folder or empty.
    """
    if not _is_list(path):
        with path.open("rb") as file:
            line = next((line for line in iter(file.readline, b"") if line.strip()), b"")
        value = _parse(line.removeprefix(BOM))
        return None if isinstance(value, ValueError) else value
    head = b""
    with path.open("rb") as file:
        while len(head) < _LONGEST_ROW and (more := file.read(max(_HEAD_BYTES, len(head)))):
            head += more
            text = head.removeprefix(BOM).decode(errors="replace").lstrip()
            start = len(text) - len(text[1:].lstrip())
            try:
                return json.JSONDecoder().raw_decode(text, start)[0]
            except (ValueError, RecursionError):
                # Cut off, a number of thousands of digits, or nested too deeply.
                continue
    return None


def chunks(path: Path, rows_each: int) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks.

    Raises:
        SourceError: It is missing, empty, no JSON, cut off, or no list of rows.
    """
    yield from (_list_chunks if _is_list(path) else _line_chunks)(path, rows_each)


def _is_list(path: Path) -> bool:
    """Tell a JSON list from JSONL by its first character: names are not always right.

    Raises:
        SourceError: The file is missing, a folder, empty or UTF-16.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    refuse_utf16(head, path)
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def _list_chunks(path: Path, rows_each: int) -> Iterator[Chunk]:
    mapped = MappedJson(path)
    rows = mapped.top(list[msgspec.Raw], "a list of conversations")
    for start in range(0, len(rows), rows_each):
        held = rows[start : start + rows_each]
        first, last = mapped.place(held[0]), mapped.place(held[-1])
        length = last.offset + last.length - first.offset
        yield Chunk(Slice(first.offset, length), start, len(held), lines=False)


def _line_chunks(path: Path, rows_each: int) -> Iterator[Chunk]:
    require_file(path)
    offset, first, rows, lines, length = 0, 1, 0, 0, 0
    with path.open("rb") as file:
        for line in file:
            if offset == length == 0 and line.startswith(BOM):
                offset, line = len(BOM), line.removeprefix(BOM)
            rows += bool(line.strip())
            lines += 1
            length += len(line)
            if rows == rows_each:
                yield Chunk(Slice(offset, length), first, rows, lines=True)
                offset, first, rows, lines, length = offset + length, first + lines, 0, 0, 0
    if rows:
        yield Chunk(Slice(offset, length), first, rows, lines=True)
