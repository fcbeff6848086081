"""Read and write JSONL with line numbers, and replace files atomically.

A file appears whole or not at all: it is written beside its place, flushed to the disk, renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import orjson

from adapt.errors import EnvironmentFault, RecordError, SourceError, UsageError
from adapt.records import RecordLine

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RECORD = msgspec.json.Decoder(RecordLine)


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when the block ends well, and vanishes otherwise.

    Args:
        path: File to replace; its folder is made.
        sync: Wait until the disk has it. Without, a power cut may leave a damaged file, so the
            caller must be able to tell, or flush many files at once later.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_fault(error, path) from error
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        if error.filename is not None and Path(error.filename).parent != path.parent:
            # Of another file that the block opened, not of the one being written.
            raise
        raise disk_fault(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def disk_fault(error: OSError, path: Path) -> EnvironmentFault:
    """Return the one-line failure for an OSError met while writing `path`."""
    if error.errno in _FULL:
        return EnvironmentFault(
            f"{path}: the disk is full (or over quota); free some space and run again"
        )
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return EnvironmentFault(
                f"{place}: is a link to {os.readlink(place)}, which is not there; is its disk "
                f"mounted?"
            )
    return EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}")


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data` atomically; see `atomic_file`."""
    with atomic_file(path, sync=sync) as file:
        file.write(data)


def path_text(path: Path | str) -> str:
    """Return a path as JSON files hold it, with `/`.

    Raises:
        UsageError: Its name is no UTF-8, which JSON cannot hold.
    """
    text = Path(path).as_posix()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{os.fsencode(text)!r}: a name that is no UTF-8; rename it") from error
    return text


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as indented JSON, keys in the order given."""
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def write_lines(path: Path, values: Iterable[object]) -> None:
    """Replace `path` by one JSON object a line."""
    encode = msgspec.json.Encoder().encode
    with atomic_file(path) as file:
        for value in values:
            file.write(encode(value) + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: It is missing, a folder, empty or not JSON; with line and column.
    """
    data = read_bytes(path)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SourceError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg.lower()}); "
            f"the file may be cut off: fetch it again"
        ) from error


def read_bytes(path: Path) -> bytes:
    """Read a whole file that must exist and hold something.

    Raises:
        SourceError: It is missing, a folder, empty or unreadable.
    """
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def require_file(path: Path) -> None:
    """Make sure that `path` is a file that holds something.

    Raises:
        SourceError: It is missing, a folder or empty.
    """
    if path.is_dir():
        raise SourceError(f"{path}: is a folder, expected a file")
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) of a text file; blank lines are passed over.

    Raises:
        SourceError: The file is missing, a folder or empty.
    """
    require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                yield number, stripped


def read_records(path: Path) -> Iterator[tuple[int, RecordLine]]:
    """Yield (line number, record) of a records file.

    Raises:
        RecordError: A line is not a record; `adapt check` lists every problem.
    """
    for number, line in read_lines(path):
        try:
            yield number, _RECORD.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path}:{number}: not a record: {error}; run adapt check {path}"
            ) from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_listing(folder: Path, *, without: Path) -> str:
    """Return the sha256 of the names and sizes of all files below a folder, in hexadecimal.

    Args:
        folder: The folder.
        without: A folder to leave out, where it lies inside.
    """
    digest = hashlib.sha256()
    seen = {without.resolve()}
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent).resolve()
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            size = path.stat().st_size if path.exists() else -1
            digest.update(os.fsencode(path.relative_to(folder)))
            digest.update(f"\0{size}\0".encode())
    return digest.hexdigest()
