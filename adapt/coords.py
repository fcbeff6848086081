"""Coordinates: pixels <-> 0-1000, boxes, points, mosaics; pure functions and their inverses.

Text coordinates are integers 0 to 1000 of the picture as the model sees it: after EXIF rotation,
and of the whole mosaic for several views. A box is clamped to its own picture or view in pixels,
then mapped, then rounded (halves away from zero).

A mosaic is a grid of cells, each a view resized to the cell:

    FRONT_LEFT | FRONT | FRONT_RIGHT        3 x 2 cells of 896x448
    BACK_LEFT  | BACK  | BACK_RIGHT         = 2688x896
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BIN = 1000
_DECIMALS = 10
"""Decimals of 0-1000 in which a number that is written down differs from its neighbours."""

Box = tuple[float, float, float, float]
Box1000 = tuple[int, int, int, int]

BOX_PATTERN = re.compile(r"<box>(.*?)</box>", re.DOTALL)
POINT_PATTERN = re.compile(r"<c\d+,\w+,\[\s*(\d+)\s*,\s*(\d+)\s*\]>")
"""A tag with a point of 0 to 1000."""
_INNER = r"\[\s*[0-9]+\s*,\s*[0-9]+\s*,\s*[0-9]+\s*,\s*[0-9]+\s*\]"
_BOX_LIST = re.compile(rf"\s*\[\s*{_INNER}(?:\s*,\s*{_INNER})*\s*\]\s*")
_BOX_NUMBERS = re.compile(r"[0-9]+")


class EmptyBoxError(ValueError):
    """A box has no area, or none inside its picture."""


def round_half_away(value: float) -> int:
    """Round to the nearest integer, halves away from zero.

    >>> round_half_away(0.5), round_half_away(1.5), round_half_away(-0.5), round_half_away(2.4)
    (1, 2, -1, 2)
    """
    floor = math.floor(abs(value))
    rounded = floor + (abs(value) - floor >= 0.5)
    return rounded if value >= 0 else -rounded


def clamp(value: float, low: float, high: float) -> float:
    """Return `value` moved into `low`..`high`."""
    return min(max(value, low), high)


def pixel_to_1000(pixel: float, size: float) -> int:
    """Map a pixel coordinate to 0-1000 of a side `size` pixels long.

    >>> pixel_to_1000(224, 448), pixel_to_1000(201, 400)
    (500, 503)
    """
    # A half is seldom exact in binary: 18.9 of 1800 is 10.5 less two quadrillionths.
    return round_half_away(round(pixel * BIN / size, _DECIMALS))


def pixel_from_1000(value: float, size: float) -> float:
    """Map 0-1000 back to pixels: the inverse of `pixel_to_1000` within half a bin."""
    return value / BIN * size


def clamp_box(box_px: Sequence[float], width: float, height: float) -> Box:
    """Clamp a box to its picture, in pixels.

    Args:
        box_px: x1, y1, x2, y2 in pixels, corners in any order refused.

    Raises:
        EmptyBoxError: It has no area, is not finite, or lies outside the picture.
    """
    x1, y1, x2, y2 = box_px
    if not all(math.isfinite(value) for value in box_px):
        raise EmptyBoxError(f"box {list(box_px)} has a coordinate that is no number")
    if x2 <= x1 or y2 <= y1:
        raise EmptyBoxError(f"box {list(box_px)} has no area; expected x1 < x2 and y1 < y2")
    clamped = (clamp(x1, 0, width), clamp(y1, 0, height), clamp(x2, 0, width), clamp(y2, 0, height))
    if clamped[2] <= clamped[0] or clamped[3] <= clamped[1]:
        raise EmptyBoxError(f"box {list(box_px)} lies outside the {width:g}x{height:g} picture")
    return clamped


def box_to_1000(box_px: Sequence[float], width: float, height: float) -> Box1000:
    """Clamp a box to its picture and map it to 0-1000.

    >>> box_to_1000((0, 0, 400, 1200), 800, 800)
    (0, 0, 500, 1000)

    Raises:
        EmptyBoxError: See `clamp_box`.
    """
    x1, y1, x2, y2 = clamp_box(box_px, width, height)
    return (
        pixel_to_1000(x1, width),
        pixel_to_1000(y1, height),
        pixel_to_1000(x2, width),
        pixel_to_1000(y2, height),
    )


def box_from_1000(box: Sequence[float], width: float, height: float) -> Box:
    """Map a 0-1000 box to pixels: the inverse of `box_to_1000` within half a bin."""
    x1, y1, x2, y2 = box
    return (
        pixel_from_1000(x1, width),
        pixel_from_1000(y1, height),
        pixel_from_1000(x2, width),
        pixel_from_1000(y2, height),
    )


def format_boxes(boxes: Iterable[Box1000]) -> str:
    """Write boxes in the text form: `<box>[[x1, y1, x2, y2], ...]</box>`.

    >>> format_boxes([(1, 2, 3, 4)])
    '<box>[[1, 2, 3, 4]]</box>'
    """
    inner = ", ".join(f"[{x1}, {y1}, {x2}, {y2}]" for x1, y1, x2, y2 in boxes)
    return f"<box>[{inner}]</box>"


def parse_box_list(text: str) -> list[Box1000]:
    """Read the inside of a `<box>` element.

    >>> parse_box_list("[[1, 2, 3, 4], [5, 6, 7, 8]]")
    [(1, 2, 3, 4), (5, 6, 7, 8)]

    Raises:
        ValueError: It is not a list of lists of four whole numbers.
    """
    if not _BOX_LIST.fullmatch(text):
        raise ValueError(f"found {text!r}, expected [[x1, y1, x2, y2], ...] of whole numbers")
    numbers = [int(number) for number in _BOX_NUMBERS.findall(text)]
    return [
        (numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3])
        for i in range(0, len(numbers), 4)
    ]


@dataclass(frozen=True, slots=True)
class MosaicLayout:
    """A grid of camera views in one picture.

    Args:
        name: Names the layout in options and file names.
        cameras: Rows of camera names, as they stand in the mosaic.
        view_width: Width in pixels of a raw view, which tags and boxes refer to.
        view_height: Height in pixels of a raw view.
        cell_width: Width in pixels of a view in the mosaic.
        cell_height: Height in pixels of a view in the mosaic.
        label: Whether each cell carries its camera's name.
    """

    name: str
    cameras: tuple[tuple[str, ...], ...]
    view_width: int
    view_height: int
    cell_width: int
    cell_height: int
    label: bool = True

    @property
    def width(self) -> int:
        """Width of the mosaic in pixels."""
        return self.cell_width * max(len(row) for row in self.cameras)

    @property
    def height(self) -> int:
        """Height of the mosaic in pixels."""
        return self.cell_height * len(self.cameras)

    def origin(self, camera: str) -> tuple[int, int]:
        """Return the top-left corner of a camera's cell in mosaic pixels.

        Raises:
            KeyError: The layout has no such camera.
        """
        for row_index, row in enumerate(self.cameras):
            if camera in row:
                return row.index(camera) * self.cell_width, row_index * self.cell_height
        raise KeyError(camera)

    def point_to_1000(self, camera: str, x_px: float, y_px: float) -> tuple[int, int]:
        """Map a point of a view to 0-1000 of the mosaic, clamped to its own view first."""
        x_mosaic, y_mosaic = self._to_mosaic_px(camera, x_px, y_px)
        return pixel_to_1000(x_mosaic, self.width), pixel_to_1000(y_mosaic, self.height)

    def point_from_1000(self, camera: str, x: float, y: float) -> tuple[float, float]:
        """Map 0-1000 of the mosaic to pixels of the named view, clamped to that view."""
        left, top = self.origin(camera)
        x_px = (pixel_from_1000(x, self.width) - left) / self.cell_width * self.view_width
        y_px = (pixel_from_1000(y, self.height) - top) / self.cell_height * self.view_height
        return clamp(x_px, 0, self.view_width), clamp(y_px, 0, self.view_height)

    def box_to_1000(self, camera: str, box_px: Sequence[float]) -> Box1000:
        """Map a box of a view to 0-1000 of the mosaic, clamped to its own view first.

        Raises:
            EmptyBoxError: See `clamp_box`.
        """
        x1, y1, x2, y2 = clamp_box(box_px, self.view_width, self.view_height)
        return (*self.point_to_1000(camera, x1, y1), *self.point_to_1000(camera, x2, y2))

    def box_from_1000(self, camera: str, box: Sequence[float]) -> Box:
        """Map a 0-1000 box of the mosaic to pixels of the named view, clamped to that view."""
        x1, y1, x2, y2 = box
        return (*self.point_from_1000(camera, x1, y1), *self.point_from_1000(camera, x2, y2))

    def _to_mosaic_px(self, camera: str, x_px: float, y_px: float) -> tuple[float, float]:
        left, top = self.origin(camera)
        x_view = clamp(x_px, 0, self.view_width)
        y_view = clamp(y_px, 0, self.view_height)
        return (
            left + x_view * self.cell_width / self.view_width,
            top + y_view * self.cell_height / self.view_height,
        )


NUSCENES = MosaicLayout(
    name="nuscenes",
    cameras=(
        ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
        ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
    ),
    view_width=1600,
    view_height=900,
    cell_width=896,
    cell_height=448,
)
"""The paper's six-camera layout: 2688x896, section 4.2.1."""
