"""A mix on the disk, and reading its records back.

data/mix/
    mix.json       sources, shares, seed; schemas/mix.schema.json
    mix.parquet    a row for each record in training order, of the columns below

source  int16   index in mix.json's sources
file    int16   index in that source's files
row     int32   line in that file, from 0
offset  int64   byte where the line starts
copy    int16   0 for a record's first time in the mix, 1 for its second, ...
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from adapt.errors import RecordError, SourceError
from adapt.jsonl import read_bytes, sha256_file
from adapt.records import RecordLine

MANIFEST, INDEX = "mix.json", "mix.parquet"
FORMAT = 1
COLUMNS: dict[str, Any] = {
    "source": np.int16,
    "file": np.int16,
    "row": np.int32,
    "offset": np.int64,
    "copy": np.int16,
}
_OPEN_FILES = 64
_READ_BYTES = 4096
_RECORD = msgspec.json.Decoder(RecordLine)


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of mix.json; keys in the order of the fields."""


class MixFile(_Stored, frozen=True):
    """A records file of a source."""

    path: str
    sha256: str
    records: int
    bytes: int


class MixSource(_Stored, frozen=True):
    """A dataset in a mix; see the schema for each key."""

    name: str
    role: str
    domain: str
    folder: str
    root: str
    take: int | None
    repeat: str | None
    rows_available: int
    rows_used: int
    rows_distinct: int
    files: list[MixFile]


class Share(_Stored, frozen=True):
    """Rows of a side and their share of the mix."""

    rows: int
    share: float


class Shares(_Stored, frozen=True):
    """Both sides."""

    general: Share
    domain: Share


class IndexFile(_Stored, frozen=True):
    """The parquet file that belongs to a mix.json."""

    path: str
    sha256: str
    bytes: int


class MixManifest(_Stored, frozen=True):
    """The whole of mix.json."""

    format: int
    seed: int
    ratio: str | None
    fraction_of_general: str | None
    allow_repeat: bool
    rows: int
    reached: str
    shares: Shares
    sources: list[MixSource]
    index: IndexFile


_MANIFEST = msgspec.json.Decoder(MixManifest)


@dataclass(slots=True)
class Mix:
    """A mix: its manifest, and its rows as columns; records are read from the datasets' files.

    May be sent to other processes, which open the files for themselves.

    Args:
        folder: Folder of mix.json.
        manifest: What mix.json says.
        columns: Arrays of [rows], by the names in the module's docstring.
    """

    folder: Path
    manifest: MixManifest
    columns: dict[str, NDArray[Any]]
    _files: OrderedDict[tuple[int, int], int] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        """Return how many records the mix holds, copies counted."""
        return self.manifest.rows

    def __getstate__(self) -> tuple[Path, MixManifest, dict[str, NDArray[Any]]]:
        """Leave the open files behind when the mix goes to another process."""
        return self.folder, self.manifest, self.columns

    def __setstate__(self, state: tuple[Path, MixManifest, dict[str, NDArray[Any]]]) -> None:
        """Come back without open files."""
        self.folder, self.manifest, self.columns = state
        self._files = OrderedDict()

    def __del__(self) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files that reading has opened; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def source(self, index: int) -> MixSource:
        """Return the source of a record."""
        return self.manifest.sources[int(self.columns["source"][index])]

    def place(self, index: int) -> str:
        """Return where a record stands, for messages: `FILE:LINE`."""
        return f"{self.file_path(index)}:{int(self.columns['row'][index]) + 1}"

    def file_path(self, index: int) -> Path:
        """Return the records file of a record."""
        file = self.source(index).files[int(self.columns["file"][index])]
        return self.folder / file.path

    def read_line(self, index: int) -> bytes:
        """Return a record's line as it is stored, without its end.

        Raises:
            RecordError: The file cannot be read, or ends before the record.
        """
        offset = int(self.columns["offset"][index])
        try:
            handle = self._handle(index)
            line = os.pread(handle, _READ_BYTES, offset)
            end = line.find(b"\n")
            while end < 0 and (more := os.pread(handle, 4 * len(line), offset + len(line))):
                end = more.find(b"\n")
                end = end + len(line) if end >= 0 else -1
                line += more
        except OSError as error:
            raise RecordError(
                f"{self.place(index)}: cannot be read: {error.strerror or error}"
            ) from error
        if not line:
            raise RecordError(f"{self.place(index)}: the file ends before it; run adapt mix again")
        return line[:end].rstrip(b"\r") if end >= 0 else line

    def record(self, index: int) -> RecordLine:
        """Return a record.

        Raises:
            RecordError: There is none at its place any more.
        """
        try:
            return _RECORD.decode(self.read_line(index))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{self.place(index)}: not a record ({error}); was the file changed? "
                f"run adapt mix again"
            ) from error

    def image_path(self, index: int, image: str) -> Path:
        """Return the file of one of a record's images."""
        return self.folder / self.source(index).root / image

    def verify(self) -> None:
        """Read every records file and compare its sha256.

        Raises:
            RecordError: One has changed since the mix was made.
        """
        for source in self.manifest.sources:
            for file in source.files:
                if sha256_file(self.folder / file.path) != file.sha256:
                    raise _changed(self.folder / file.path)

    def _handle(self, index: int) -> int:
        key = (int(self.columns["source"][index]), int(self.columns["file"][index]))
        if key in self._files:
            self._files.move_to_end(key)
        else:
            self._files[key] = os.open(self.file_path(index), os.O_RDONLY)
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        return self._files[key]


def read_mix(folder: Path) -> Mix:
    """Read a mix, and make sure that its files are those it was made of, by their sizes.

    Args:
        folder: Folder of mix.json, or that file.

    Raises:
        SourceError: There is no mix.
        RecordError: It is damaged, or a records file has changed or gone.
    """
    folder = folder.parent if folder.name == MANIFEST else folder
    path = folder / MANIFEST
    if not path.exists():
        raise SourceError(f"{folder}: holds no mix ({MANIFEST}); adapt mix makes one")
    try:
        manifest = _MANIFEST.decode(read_bytes(path))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a mix ({error}); run adapt mix again") from error
    if manifest.format != FORMAT:
        raise RecordError(
            f"{path}: format is {manifest.format}, this version reads {FORMAT}; run adapt mix again"
        )
    for source in manifest.sources:
        for file in source.files:
            found = folder / file.path
            if not found.is_file():
                raise RecordError(
                    f"{path}: names {found}, which is gone; bring it back or run adapt mix again"
                )
            if found.stat().st_size != file.bytes:
                raise _changed(found)
    return Mix(folder, manifest, _read_index(folder, manifest))


def _changed(path: Path) -> RecordError:
    return RecordError(f"{path}: has changed since the mix was made; run adapt mix again")


def _read_index(folder: Path, manifest: MixManifest) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / manifest.index.path
    if not path.is_file() or sha256_file(path) != manifest.index.sha256:
        state = "does not belong to" if path.is_file() else "is missing beside"
        raise RecordError(f"{path}: {state} {MANIFEST}; run adapt mix again")
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path}: cannot be read ({error}); run adapt mix again") from error
    return {name: table[name].to_numpy() for name in COLUMNS}
