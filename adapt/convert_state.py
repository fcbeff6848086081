"""What a conversion leaves beside its output until it is whole: lock, job file, what was skipped.

OUT/.adapt/lock            held by the one conversion that may write here
OUT/.adapt/SPLIT.json      the job file: what the unfinished split is made by
OUT/.adapt/SPLIT/*.part    the outcome of each part, see `adapt.convert_part`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from adapt.convert_part import SkipEntry
from adapt.errors import RecordError, some
from adapt.jsonl import read_lines
from adapt.new_folder import remove_empty
from adapt.one_writer import one_writer

STATE = ".adapt"


class Unfinished(msgspec.Struct):
    """The job file of a split that is not whole yet: what it is made by, see `differences`."""

    made_by: dict[str, Any]
    keep_pictures: bool


def read_unfinished(path: Path) -> Unfinished | None:
    """Return what a job file says; None when there is none, or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Unfinished)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the output folder against a second conversion at the same time."""
    state = out / STATE
    busy = f"{out}: another adapt convert is writing here; wait for it"
    try:
        with one_writer(state / "lock", busy=busy):
            yield
    finally:
        # Of a conversion that was stopped, and is whole now.
        remove_empty([state])


def read_skips(path: Path) -> Iterator[SkipEntry]:
    """Yield the lines of skipped.jsonl.

    Raises:
        RecordError: One is none of a converter's.
    """
    for number, line in read_lines(path):
        try:
            yield msgspec.json.decode(line, type=SkipEntry)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path}:{number}: no line of a converter: {error}; remove the file, and convert "
                f"every split again with --overwrite"
            ) from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between two `made_by` descriptions.

    >>> differences({"options": {"seed": 1}, "limit": None}, {"options": {"seed": 2}, "limit": 3})
    ['option seed 1, now 2', 'limit None, now 3']
    """
    found = []
    for key in before.keys() | now.keys():
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = sorted(
                name for name in old.keys() | new.keys() if old.get(name) != new.get(name)
            )
            if key == "inputs":
                found.append(f"other input ({some(names, most=3)})")
            else:
                label = key.removesuffix("s")
                found += [f"{label} {name} {old.get(name)}, now {new.get(name)}" for name in names]
        else:
            found.append(f"{key} {old}, now {new}")
    return sorted(found, key=lambda text: not text.startswith("option"))
