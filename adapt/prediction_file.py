"""The predictions file: its lines, how they were made, and which of them are there already.

answers.jsonl              a line a record (schemas/prediction.schema.json), when all are there
.answers.jsonl.partial     the first so many lines, while they are made or after a stop
answers.jsonl.about.json   what they were made with
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from adapt.errors import RecordError, SourceError, UsageError
from adapt.jsonl import read_json, write_bytes
from adapt.records import RecordLine, Source

_PIECES = 64
_PIECE_BYTES = 65536


class Prediction(msgspec.Struct, frozen=True):
    """A line of the predictions file; keys in this order."""

    id: str
    question: str
    answer: str
    gt_answer: str
    source: Source
    model: str
    prompt_tokens: int
    answer_tokens: int
    finish: str


_PREDICTION = msgspec.json.Decoder(Prediction)


def partial_path(out: Path) -> Path:
    """Return the file that holds the first answers until all are there."""
    return out.with_name(f".{out.name}.partial")


def about_path(out: Path) -> Path:
    """Return the file that says how the answers in `out` were made."""
    return out.with_name(f"{out.name}.about.json")


def weights_digest(folder: Path) -> str:
    """Return a sha256 of a checkpoint: its config, and pieces from all over its weights.

    Reading all of a large checkpoint takes longer than many a prediction; any training step changes
    every piece.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(max(0, (size - _PIECE_BYTES)) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def discard(out: Path) -> None:
    """Remove a predictions file and everything beside it."""
    for path in (out, partial_path(out), about_path(out)):
        path.unlink(missing_ok=True)


def answers_there(out: Path, about: Mapping[str, Any], records: Sequence[RecordLine]) -> int:
    """Return how many of the first records have an answer; the partial file then holds these.

    Args:
        out: Predictions file.
        about: What the answers should have been made with.
        records: What they should answer.

    Raises:
        UsageError: They were made with something else, or nobody knows with what.
        RecordError: They answer other records.
    """
    partial = partial_path(out)
    if not out.exists() and not partial.exists():
        return 0
    _compare_about(out, about)
    lines = _whole_lines(partial if partial.exists() else out)
    for number, (line, record) in enumerate(zip(lines, records, strict=False), start=1):
        _compare(line, record, f"{out}:{number}")
    if not out.exists() or len(lines) < len(records):
        write_bytes(partial, b"".join(lines))
    return len(lines)


def _compare_about(out: Path, about: Mapping[str, Any]) -> None:
    path = about_path(out)
    try:
        before = read_json(path)
    except SourceError:
        before = None
    if not isinstance(before, dict):
        state = "damaged" if path.exists() else "missing"
        raise UsageError(
            f"{out}: is there, and nothing says how its answers were made ({path.name} is "
            f"{state}); --overwrite discards it"
        )
    differing = [
        f"{key} was {before.get(key)}, is {value}"
        for key, value in about.items()
        if before.get(key) != value
    ]
    if differing:
        raise UsageError(
            f"{out}: holds answers made otherwise ({'; '.join(differing)}); --overwrite discards "
            f"them, another --out keeps them"
        )


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def _compare(line: bytes, record: RecordLine, place: str) -> None:
    """Refuse an answer that is there if it is not to this record."""
    try:
        found = _PREDICTION.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{place}: not a prediction ({error}); --overwrite discards it"
        ) from error
    if found.id != record.id or found.question != question_of(record):
        raise RecordError(
            f"{place}: answers {found.id}, the record there is now {record.id} or asks otherwise; "
            f"--overwrite discards all answers"
        )


def question_of(record: RecordLine) -> str:
    """Return the last human turn."""
    return next(turn.value for turn in reversed(record.conversations) if turn.speaker == "human")
