"""Conversations of general data: LLaVA, ShareGPT4V, All-Seeing v2, XTuner, LLaMA-Factory, ...

Source:  https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md, or files of the same shapes
Raw:     *.json (lists) and *.jsonl, found two folders deep by their first row; pictures beside
         them, their paths relative to the annotation file's folder or one above it, or to --images
Units:   rows of those files, in the order of the files' names
Rows:    the dialects of `_dialects`; videos are skipped
Ids:     llava/train/FILE:ROW, FILE relative to the raw folder; ROW counts from 0 in a list, is
         the line in JSONL. The row's own id is kept in extra.
Boxes:   brought to <box>[[x1, y1, x2, y2]]</box> in 0-1000 of the picture, see `_text_boxes`

`<image>` is put before the first turn when a row with pictures has none, as InternVL's trainer
does. System messages, an answer before the first question and a question after the last answer
are left out, and counted: InternVL's trainer has no place for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson

from adapt.converters._box_survey import FileBoxes, survey_boxes
from adapt.converters._dialects import Conversation, RowError, read_conversation
from adapt.converters._pictures import PictureFinder
from adapt.converters._rows import Chunk, chunks, conversation_files, holds_conversations
from adapt.converters._text_boxes import BoxError, BoxReading, convert_boxes
from adapt.errors import SourceError, some
from adapt.images import ImageError
from adapt.records import Part, Record, Result, Skip, Turn

SPLITS = ("train",)
ROLE, DOMAIN, FAMILY = "general", "general", "conversation"
LICENCE = "as each file says; LLaVA-1.5's mix: CC BY 4.0 and the terms of its sources"
SOURCE = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Data.md"
FILES = "*.json or *.jsonl of conversations, and their pictures"
COORDINATES = "0-1000 of the picture; 0-1 and 0-1000 in the files, of the picture or padded square"
PARTS = "chunks of rows"

ROWS_A_PART = 250

Annotations = Annotated[Path | None, "Read this file only (default: every one found in RAW)."]
Images = Annotated[
    Path | None, "Folder that picture paths start from (default: looked for in RAW)."
]
BoxRange = Annotated[
    Literal["auto", "0-1", "0-1000", "none"],
    "Range of the boxes in the files; none leaves the texts as they are.",
]
BoxFrame = Annotated[
    Literal["auto", "picture", "square"],
    "What boxes are relative to: the picture, or the picture padded to a square.",
]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a part holds: a chunk of a file, and how its boxes are read."""

    path: Path
    name: str
    chunk: Chunk
    boxes: FileBoxes


def sources(
    raw: Path,
    split: str,  # noqa: ARG001
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    box_range: str = "auto",  # noqa: ARG001
    box_frame: str = "auto",  # noqa: ARG001
) -> list[Path]:
    """Return the annotation files to read.

    Raises:
        SourceError: There is none, the one given holds no conversations, or the folder of pictures
            is not there.
    """
    if images is not None and not images.is_dir():
        raise SourceError(f"{images}: no such folder; expected the one that picture paths start in")
    if annotations is not None:
        if not holds_conversations(annotations):
            raise SourceError(
                f"{annotations}: its first row is no conversation; expected a JSON list or JSONL "
                f"of rows with conversations, messages, instruction or question"
            )
        return [annotations]
    found, _ = conversation_files(raw)
    if not found:
        raise SourceError(
            f"{raw}: holds no file of conversations; expected {FILES}, from {SOURCE}; "
            f"or name one with --annotations"
        )
    return found


def notices(raw: Path, split: str, *, annotations: Path | None = None, **_: object) -> list[str]:  # noqa: ARG001
    """Return which files of the raw folder are not read, though they could be meant."""
    others = [] if annotations is not None else conversation_files(raw)[1]
    names = some([path.relative_to(raw).as_posix() for path in others])
    return [f"left out, the first row is no conversation: {names}"] if others else []


def image_root(raw: Path, *, images: Path | None = None, **_: object) -> Path:
    """Return the folder that records' image paths start from."""
    return raw if images is None else images


def parts(
    raw: Path,
    split: str,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    box_range: str = "auto",
    box_frame: str = "auto",
) -> list[Part]:
    """Return chunks of rows, with how the boxes of their file are to be read.

    Raises:
        SourceError: A file is damaged, or holds boxes of an unclear range.
    """
    finder = PictureFinder(image_root(raw, images=images), search=images is None)
    found = []
    for path in sources(raw, split, annotations=annotations, images=images):
        name = path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name
        held = list(chunks(path, ROWS_A_PART))
        boxes = survey_boxes(path, held, finder, box_range=box_range, box_frame=box_frame)
        found += [
            Part(f"{name}:{chunk.first}", chunk.rows, _Rows(path, name, chunk, boxes))
            for chunk in held
        ]
    return found


def convert_part(
    raw: Path,
    split: str,
    part: Part,
    *,
    annotations: Path | None = None,  # noqa: ARG001
    images: Path | None = None,
    box_range: str = "auto",  # noqa: ARG001
    box_frame: str = "auto",  # noqa: ARG001
) -> Iterator[Result]:
    """Yield a record or a skip for each row of a chunk.

    Raises:
        SourceError: The file has changed since it was skimmed.
    """
    rows = part.payload
    assert isinstance(rows, _Rows)
    finder = PictureFinder(image_root(raw, images=images), search=images is None)
    for number, row in rows.chunk.read(rows.path):
        place = f"{rows.name}:{number}" if rows.chunk.lines else f"{rows.name}[{number}]"
        try:
            if isinstance(row, orjson.JSONDecodeError):
                raise RowError("bad-json", f"column {row.colno}: {row.msg}")
            yield _convert_row(f"llava/{split}/{rows.name}:{number}", row, rows, finder)
        except (RowError, BoxError, ImageError) as error:
            yield Skip(place, error.reason, error.detail)


def convert(
    raw: Path,
    split: str,
    *,
    annotations: Annotations = None,
    images: Images = None,
    box_range: BoxRange = "auto",
    box_frame: BoxFrame = "auto",
) -> Iterator[Result]:
    """Yield a record or a skip for each row of the files, in their order.

    Args:
        raw: Folder laid out as in the module docstring.
        split: One of SPLITS.
        annotations: The only file to read.
        images: Folder that picture paths start from.
        box_range: Range of the boxes in the files.
        box_frame: What the boxes are relative to.

    Raises:
        SourceError: A file is missing or malformed, or its boxes are of an unclear range.
    """
    options: dict[str, Any] = {
        "annotations": annotations,
        "images": images,
        "box_range": box_range,
        "box_frame": box_frame,
    }
    for part in parts(raw, split, **options):
        yield from convert_part(raw, split, part, **options)


def _convert_row(identifier: str, row: object, rows: _Rows, finder: PictureFinder) -> Record:
    """Return the record of a row.

    Raises:
        RowError: It is malformed, or holds what is not supported.
        BoxError: A box cannot be brought to 0-1000.
        ImageError: Its boxes need the size of a picture that cannot be opened.
    """
    conversation = read_conversation(row)
    images = conversation.images
    paths = [finder.find(image, rows.path) for image in images]
    frame = rows.boxes.frame(images)
    size = finder.size(paths[0]) if frame == "square" and len(paths) == 1 else None
    reading = BoxReading(rows.boxes.style, frame, bool(images), size)
    turns, ranges = [], set()
    for turn in conversation.turns:
        text, found = convert_boxes(turn.text, reading)
        turns.append(Turn(turn.speaker, text))
        ranges |= found
    read_as = [f"boxes {one} of the {frame} ({rows.name})" for one in sorted(ranges)]
    return Record(
        id=identifier,
        image=tuple(paths),
        turns=tuple(turns),
        task="conversation",
        extra=_extra(conversation),
        notes=(*conversation.notes, *read_as),
    )


def _extra(conversation: Conversation) -> str:
    """Return the row's own id, its system message and whatever else it holds, as JSON."""
    held = dict(conversation.others)
    if conversation.system:
        held["system"] = conversation.system
    return orjson.dumps(held).decode() if held else ""
