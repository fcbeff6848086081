"""Draw the boxes and points of a record on its picture, to look at with one's own eyes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from adapt.coords import (
    BOX_PATTERN,
    POINT_PATTERN,
    Box1000,
    box_from_1000,
    parse_box_list,
    pixel_from_1000,
)
from adapt.images import open_rgb
from adapt.records import RecordLine

BOX_COLOUR = (57, 255, 20)
POINT_COLOUR = (0, 200, 255)


def record_boxes(record: RecordLine) -> Iterator[Box1000]:
    """Yield the boxes in a record's turns, 0-1000."""
    for turn in record.conversations:
        for inner in BOX_PATTERN.findall(turn.value):
            yield from parse_box_list(inner)


def record_points(record: RecordLine) -> Iterator[tuple[int, int]]:
    """Yield the points of the c tags in a record's turns, 0-1000."""
    for turn in record.conversations:
        for x, y in POINT_PATTERN.findall(turn.value):
            yield int(x), int(y)


def draw_record(record: RecordLine, root: Path) -> Image.Image:
    """Return the record's first picture with its boxes and points drawn on.

    Args:
        record: A record with one picture.
        root: Folder where its image paths start.
    """
    image = open_rgb(root / record.image[0])
    pen = ImageDraw.Draw(image)
    width = max(2, image.width // 500)
    for box in record_boxes(record):
        pen.rectangle(box_from_1000(box, *image.size), outline=BOX_COLOUR, width=width)
    for point in record_points(record):
        x, y = pixel_from_1000(point[0], image.width), pixel_from_1000(point[1], image.height)
        reach = 3 * width
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=POINT_COLOUR, width=width)
    return image
