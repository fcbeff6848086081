"""Tell what the boxes of a file are: their range, and the frame they are relative to.

Range: tagged boxes with a number above 1 are 0-1000, with decimals of 0-1 they are 0-1; a file
that has both, or nothing but zeros and ones, is unclear. Bare boxes are taken for such only when
they are decimals of 0-1: whole numbers in brackets may be anything.

Frame: of the picture, or of the picture padded to a square (centred, each side as long as the
longer one). LLaVA-1.5 is fed with padded pictures, and its boxes of Visual Genome are relative to
them (https://github.com/haotian-liu/LLaVA/issues/606; of RefCOCO users report both, issue 822);
All-Seeing v2's files are padded too unless named wo_square_pad
(https://github.com/OpenGVLab/all-seeing/issues/6, /10). A box does not say which. Many boxes do:
in the padded frame none reaches into the padding, and several end exactly where it begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from adapt.converters._dialects import RowError, read_conversation
from adapt.converters._pictures import PictureFinder
from adapt.converters._rows import Chunk
from adapt.converters._text_boxes import BoxStyle, FoundBoxes, Frame, find_boxes
from adapt.coords import BIN, Box
from adapt.errors import SourceError

COMPARED_BOXES = 2000
"""Boxes of each first folder that are compared with their pictures: the first."""

_MAY_HOLD_BOXES = re.compile(rb"<box>|\[\s*-?[\d.]+\s*,\s*-?[\d.]+\s*,")

# A frame is told from this many different boxes at least, in pictures this far from square.
ENOUGH_BOXES = 50
ELONGATED = 1.1
# Two decimals round by half a hundredth; a pixel of the picture may come on top.
_SLACK = 0.0075
_MOST_OUTSIDE = 0.02
_FEWEST_AT_EDGE = 0.02


@dataclass(slots=True)
class RangeSurvey:
    """Counts of what the boxes of a file look like.

    Args:
        tagged_unit: Tagged boxes with a decimal, all of 0-1.
        tagged_large: Tagged boxes with a number above 1.
        tagged_either: Tagged boxes of zeros and ones alone.
        bare_unit: Bare boxes with a decimal, all of 0-1.
    """

    tagged_unit: int = 0
    tagged_large: int = 0
    tagged_either: int = 0
    bare_unit: int = 0

    def add(self, found: FoundBoxes) -> None:
        """Count boxes."""
        if not found.tagged:
            self.bare_unit += found.is_unit() and found.decimal
        elif found.largest > 1:
            self.tagged_large += 1
        elif found.is_unit():
            self.tagged_unit += found.decimal
            self.tagged_either += not found.decimal


@dataclass(slots=True)
class FrameSurvey:
    """Boxes against the padding that a square frame would have; see the module's docstring."""

    outside: int = 0
    at_edge: int = 0
    seen: set[tuple[Box, tuple[int, int]]] = field(default_factory=set)

    def add(self, box: Box, size: tuple[int, int]) -> None:
        """Count a box in 0-1 of a picture of this width and height; each different one once."""
        width, height = size
        longer, shorter = max(size), min(size)
        if longer < ELONGATED * shorter or (box, size) in self.seen:
            return
        self.seen.add((box, size))
        edge = (longer - shorter) / 2 / longer
        low, high = (box[1], box[3]) if width > height else (box[0], box[2])
        self.outside += low < edge - _SLACK or high > 1 - edge + _SLACK
        self.at_edge += abs(low - edge) <= _SLACK or abs(high - 1 + edge) <= _SLACK

    def frame(self) -> Frame:
        """Return the frame that the boxes speak for; the picture when they are too few to tell."""
        number = len(self.seen)
        enough = number >= ENOUGH_BOXES
        inside = self.outside <= _MOST_OUTSIDE * number
        touching = self.at_edge >= _FEWEST_AT_EDGE * number
        return "square" if enough and inside and touching else "picture"


@dataclass(frozen=True, slots=True)
class FileBoxes:
    """How the boxes of a file are read.

    Args:
        style: Their ranges.
        frames: What they are relative to, by the first folder of the picture's path.
        otherwise: What those of any other folder are relative to.
    """

    style: BoxStyle
    frames: dict[str, Frame] = field(default_factory=dict)
    otherwise: Frame = "picture"

    def frame(self, images: list[str]) -> Frame:
        """Return what the boxes of a row with these pictures are relative to."""
        return self.frames.get(group_of(images[0]), self.otherwise) if images else "picture"


def group_of(image: str) -> str:
    """Return the first folder of a picture's path: each data set in a mix has its own."""
    return image.split("/", 1)[0] if "/" in image else ""


def survey_boxes(
    path: Path,
    chunks: Iterable[Chunk],
    finder: PictureFinder,
    *,
    box_range: str,
    box_frame: str,
) -> FileBoxes:
    """Return how the boxes of a file are read, as asked for or as the boxes tell.

    Raises:
        SourceError: Their range is unclear.
    """
    ranges = RangeSurvey()
    samples: dict[str, list[tuple[FoundBoxes, str]]] = {}
    if box_range == "auto" or (box_frame == "auto" and box_range != "none"):
        for images, found in _boxes_of(path, chunks):
            ranges.add(found)
            held = samples.setdefault(group_of(images[0]), []) if len(images) == 1 else []
            if len(held) < COMPARED_BOXES:
                held.append((found, images[0] if images else ""))
    style = _style(ranges, path) if box_range == "auto" else ASKED_STYLES[box_range]
    if box_frame != "auto":
        return FileBoxes(style, otherwise="square" if box_frame == "square" else "picture")
    frames = {group: _frame(style, held, path, finder) for group, held in samples.items()}
    return FileBoxes(style, frames)


ASKED_STYLES = {
    "none": BoxStyle(),
    "0-1": BoxStyle("0-1", "0-1", bare_decimals=False),
    "0-1000": BoxStyle("0-1000", "0-1000", bare_decimals=False),
}


def _boxes_of(path: Path, chunks: Iterable[Chunk]) -> Iterator[tuple[list[str], FoundBoxes]]:
    """Yield the boxes of a file with the pictures of their row."""
    for chunk in chunks:
        for row in _rows_with_boxes(path, chunk):
            try:
                conversation = read_conversation(row)
            except RowError:
                # Whoever converts the row meets the same error and counts it.
                continue
            for turn in conversation.turns:
                for found in find_boxes(turn.text):
                    if found.tagged or conversation.images:
                        yield conversation.images, found


def _rows_with_boxes(path: Path, chunk: Chunk) -> Iterator[object]:
    for _, data in chunk.read_raw(path):
        if _MAY_HOLD_BOXES.search(data):
            try:
                yield orjson.loads(data)
            except orjson.JSONDecodeError:
                continue


def _style(ranges: RangeSurvey, path: Path) -> BoxStyle:
    if ranges.tagged_unit and ranges.tagged_large:
        raise SourceError(
            f"{path}: some boxes look like 0-1000 ({ranges.tagged_large}) and some like 0-1 "
            f"({ranges.tagged_unit}); say which with --box-range 0-1 or --box-range 0-1000"
        )
    if ranges.tagged_either and not (ranges.tagged_unit or ranges.tagged_large):
        raise SourceError(
            f"{path}: all boxes hold only 0 and 1 ({ranges.tagged_either} in all), of 0-1 or of "
            f"0-1000; say which with --box-range 0-1 or --box-range 0-1000"
        )
    return BoxStyle(
        tagged="0-1" if ranges.tagged_unit else "0-1000",
        bare="0-1" if ranges.bare_unit else None,
    )


def _frame(
    style: BoxStyle,
    held: list[tuple[FoundBoxes, str]],
    path: Path,
    finder: PictureFinder,
) -> Frame:
    survey = FrameSurvey()
    for found, image in held:
        read_as = style.range_of(found, pictured=True)
        if read_as is None or (size := finder.known_size(finder.find(image, path))) is None:
            continue
        scale = 1.0 if read_as == "0-1" else float(BIN)
        for x1, y1, x2, y2 in found.boxes:
            survey.add((x1 / scale, y1 / scale, x2 / scale, y2 / scale), size)
    return survey.frame()
