"""Boxes inside texts: find them, tell their range and frame, bring them to 0-1000 and back.

    tagged   <ref>lady</ref><box>[[539, 246, 826, 984]]</box>       0-1000 (or 0-1)
    bare     a short description for this region: [0.04, 0.35, 0.27, 0.43]       0-1

Frame: of the picture, or of the picture padded to a square. `_box_survey` tells both of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from adapt.coords import (
    BIN,
    Box,
    Box1000,
    EmptyBoxError,
    box_to_1000,
    format_boxes,
    pixel_to_1000,
)
from adapt.records import SkipError

Range = Literal["0-1", "0-1000"]
Frame = Literal["picture", "square"]

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)"
_FOUR = rf"{_NUMBER}\s*(?:,\s*{_NUMBER}\s*){{3}}\]"
_BARE = rf"\[\s*(?:{_FOUR}|\[\s*{_FOUR}(?:\s*,\s*\[\s*{_FOUR})*\s*\])"
# Both ways begin with one certain character, which lets the search skip to it.
_BOXES = re.compile(rf"<box>(?P<tagged>.*?)</box>|{_BARE}", re.DOTALL)
_WHOLE_LIST = re.compile(rf"\s*{_BARE}\s*")
_NUMBERS = re.compile(_NUMBER)


class BoxError(SkipError):
    """A text holds a box that cannot be brought to 0-1000."""


@dataclass(frozen=True, slots=True)
class FoundBoxes:
    """Boxes at one place of a text.

    Args:
        start: Where they start in the text, tag or bracket included.
        end: Where they end.
        boxes: Their numbers; empty when a tag holds anything else.
        tagged: Whether they stand in `<box>`.
        decimal: Whether a number has a decimal point.
    """

    start: int
    end: int
    boxes: tuple[Box, ...]
    tagged: bool
    decimal: bool

    @property
    def largest(self) -> float:
        """Return the largest of the numbers."""
        return max((max(box) for box in self.boxes), default=0.0)

    @property
    def smallest(self) -> float:
        """Return the smallest of the numbers."""
        return min((min(box) for box in self.boxes), default=0.0)

    def is_unit(self) -> bool:
        """Return whether all numbers lie in 0-1."""
        return bool(self.boxes) and self.smallest >= 0 and self.largest <= 1


def find_boxes(text: str) -> Iterator[FoundBoxes]:
    """Yield the boxes of a text in order."""
    if "[" not in text and "<box>" not in text:
        return
    for match in _BOXES.finditer(text):
        inside = match["tagged"]
        tagged = inside is not None
        held = inside if tagged else match[0]
        numbers = _NUMBERS.findall(held) if not tagged or _WHOLE_LIST.fullmatch(held) else []
        values = [float(number) for number in numbers]
        boxes = tuple(
            (values[i], values[i + 1], values[i + 2], values[i + 3])
            for i in range(0, len(values), 4)
        )
        yield FoundBoxes(match.start(), match.end(), boxes, tagged, "." in held)


# --- How they are read --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BoxStyle:
    """How the boxes of a file are read.

    Args:
        tagged: Range of tagged boxes; None leaves them as they are.
        bare: Range of bare boxes; None leaves them as they are.
        bare_decimals: Whether bare boxes need a decimal point to be taken for such.
    """

    tagged: Range | None = None
    bare: Range | None = None
    bare_decimals: bool = True

    def range_of(self, found: FoundBoxes, *, pictured: bool) -> Range | None:
        """Return the range of boxes found in a text, None for what is none or stays as it is."""
        if found.tagged:
            return self.tagged
        if self.bare is None or not pictured or not found.boxes or found.smallest < 0:
            return None
        if self.bare == "0-1":
            taken = found.largest <= 1 and (found.decimal or not self.bare_decimals)
        else:
            ordered = all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in found.boxes)
            taken = found.largest <= BIN and not found.decimal and ordered
        return self.bare if taken else None


@dataclass(frozen=True, slots=True)
class BoxReading:
    """How the boxes of a row are read.

    Args:
        style: How those of its file are read.
        frame: What they are relative to.
        pictured: Whether the row has pictures; without any, bare boxes are none.
        size: Width and height of its picture, for a square frame; None when it has several.
    """

    style: BoxStyle
    frame: Frame = "picture"
    pictured: bool = True
    size: tuple[int, int] | None = None


# --- To 0-1000 and back -------------------------------------------------------------------------


def convert_boxes(text: str, reading: BoxReading) -> tuple[str, set[Range]]:
    """Return a text with its boxes in 0-1000 of the picture, and the ranges they were in.

    Raises:
        BoxError: A box is malformed, empty, out of range or outside its picture.
    """
    pieces: list[str] = []
    ranges: set[Range] = set()
    position = 0
    for found in find_boxes(text):
        read_as = reading.style.range_of(found, pictured=reading.pictured)
        if read_as is None:
            continue
        if not found.boxes:
            held = text[found.start : found.end]
            raise BoxError("box-malformed", f"found {held[:80]}, expected [[x1, y1, x2, y2], ...]")
        boxes = [_to_1000(box, read_as, reading) for box in found.boxes]
        pieces += [text[position : found.start], format_boxes(boxes)]
        position = found.end
        ranges.add(read_as)
    return "".join([*pieces, text[position:]]), ranges


def _to_1000(box: Box, read_as: Range, reading: BoxReading) -> Box1000:
    scale = 1.0 if read_as == "0-1" else float(BIN)
    if min(box) < 0 or max(box) > scale:
        raise BoxError("box-out-of-range", f"box {list(box)} leaves {read_as}; is it in pixels?")
    x1, y1, x2, y2 = box
    # A box already in whole bins may be as thin as a bin; any other needs an area.
    thin = x1 == x2 or y1 == y2
    if x2 < x1 or y2 < y1 or (thin and read_as == "0-1"):
        raise BoxError("box-empty", f"box {list(box)} has no area; expected x1 < x2 and y1 < y2")
    if reading.frame == "square":
        if reading.size is None:
            detail = f"box {list(box)} is of a padded square, and there are several pictures"
            raise BoxError("box-of-several-pictures", detail)
        return square_to_1000((x1 / scale, y1 / scale, x2 / scale, y2 / scale), *reading.size)
    return (
        pixel_to_1000(x1, scale),
        pixel_to_1000(y1, scale),
        pixel_to_1000(x2, scale),
        pixel_to_1000(y2, scale),
    )


def square_to_1000(unit: Box, width: int, height: int) -> Box1000:
    """Map a box in 0-1 of the padded square to 0-1000 of the picture, clamped to it.

    >>> square_to_1000((0.0, 0.25, 0.5, 0.5), 400, 200)
    (0, 0, 500, 500)

    Raises:
        BoxError: It lies in the padding.
    """
    side, left, top = _square(width, height)
    x1, y1, x2, y2 = unit
    pixels = (x1 * side - left, y1 * side - top, x2 * side - left, y2 * side - top)
    try:
        return box_to_1000(pixels, width, height)
    except EmptyBoxError as error:
        raise BoxError("box-outside", f"box {list(unit)} of the padded square: {error}") from error


def square_from_1000(box: Box1000, width: int, height: int) -> Box:
    """Map 0-1000 of the picture to 0-1 of the padded square: the inverse of `square_to_1000`."""
    side, left, top = _square(width, height)
    x1, y1, x2, y2 = box
    return (
        (x1 / BIN * width + left) / side,
        (y1 / BIN * height + top) / side,
        (x2 / BIN * width + left) / side,
        (y2 / BIN * height + top) / side,
    )


def unit_from_1000(box: Box1000) -> Box:
    """Map 0-1000 to 0-1 of the same picture."""
    x1, y1, x2, y2 = box
    return x1 / BIN, y1 / BIN, x2 / BIN, y2 / BIN


def _square(width: int, height: int) -> tuple[int, int, int]:
    """Return side, left and top padding in pixels, as pictures are centred in the square."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2
