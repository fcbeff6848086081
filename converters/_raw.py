"""Reading raw annotation files: find them, and cut a large JSON file into pieces.

A JSON object of hundreds of megabytes is mapped into memory and skimmed, not parsed: the values
of interest stay where they are in the file, and each is read on its own later.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from adapt.errors import SourceError
from adapt.jsonl import require_file

Value = TypeVar("Value")

BOM = b"\xef\xbb\xbf"

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DEPTHS = ("", "*/", "*/*/")
_BYTE = re.compile(r"\(byte (\d+)\)")


def find_file(raw: Path, names: Iterable[str]) -> Path | None:
    """Return the file of the raw folder with the first of these names, or None.

    Args:
        raw: Searched itself, and two folders deep.
        names: File names or patterns, the preferred first.

    Raises:
        SourceError: Several files have the same claim.
    """
    for name in names:
        for depth in _DEPTHS:
            found = sorted(raw.glob(depth + name))
            if len(found) > 1:
                raise SourceError(
                    f"{raw}: holds {' and '.join(str(path.relative_to(raw)) for path in found)}; "
                    f"expected one {name}; name the one to read"
                )
            if found:
                return found[0]
    return None


def refuse_utf16(head: bytes | mmap.mmap, path: Path) -> None:
    """Refuse a file that begins with the mark of UTF-16.

    Raises:
        SourceError: It does.
    """
    if head[:2] in _UTF16:
        raise SourceError(f"{path}: is UTF-16 text, expected UTF-8; save it as UTF-8")


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a file.

    Args:
        offset: Its first byte.
        length: Its bytes.
    """

    offset: int
    length: int

    def read(self, path: Path) -> bytes:
        """Return the bytes, read from the file.

        Raises:
            SourceError: The file has become shorter, or cannot be read.
        """
        try:
            with path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != self.length:
            raise SourceError(
                f"{path}: ends at byte {self.offset + len(data)}, before it had "
                f"{self.offset + self.length}; it changed while it was read"
            )
        return data


class MappedJson:
    """A large JSON file, skimmed for the places of its values.

    Args:
        path: The file.

    Raises:
        SourceError: It is missing, a folder or empty.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path = path
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = _address(self.data)

    def top(self, kind: type[Value], expected: str) -> Value:
        """Return the whole file as `kind`, in which `msgspec.Raw` stands for values to skip.

        Raises:
            SourceError: It is no JSON, cut off, or of another shape; with the byte.
        """
        refuse_utf16(self.data, self.path)
        marked = len(BOM) if self.data[: len(BOM)] == BOM else 0
        try:
            return msgspec.json.decode(memoryview(self.data)[marked:], type=kind)
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.path}: a key is no UTF-8 text ({error.reason}): {error.object!r:.80}; "
                f"expected UTF-8: fetch it again"
            ) from error
        except RecursionError as error:
            raise SourceError(
                f"{self.path}: JSON nested too deeply to read; expected {expected}"
            ) from error
        except msgspec.ValidationError as error:
            raise SourceError(f"{self.path}: {error}; expected {expected}") from error
        except msgspec.DecodeError as error:
            found = _BYTE.search(str(error))
            byte = int(found[1]) + marked if found else f"{len(self.data)} (its end)"
            problem = _BYTE.sub("", str(error)).strip().removeprefix("JSON is malformed: ")
            raise SourceError(
                f"{self.path}: not valid JSON at byte {byte}: {problem}; "
                f"the file may be cut off: fetch it again"
            ) from error

    def place(self, value: msgspec.Raw) -> Slice:
        """Return where a value stands in the file."""
        return Slice(_address(value) - self._start, len(memoryview(value)))

    def count(self, pattern: bytes, value: msgspec.Raw | None = None) -> int:
        """Return how often a regular expression matches in a value, or in the whole file."""
        return sum(1 for _ in re.finditer(pattern, self.data if value is None else value))


def _address(buffer: Any) -> int:
    import numpy as np

    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
