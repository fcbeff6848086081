"""DriveLM's object tags and lists of traffic elements, to mosaic coordinates and back.

    in the raw files, pixels of a 1600x900 view      in records, 0-1000 of the 2688x896 mosaic
    <c1,CAM_BACK,1088.3,497.5>                       <c1,CAM_BACK,[560, 776]>
    (traffic light, green, 674.86, 0.14, ...)        (traffic light, green, 474, 0, ...)

A point is clamped to its own view before it is mapped, or it would land in another camera's cell.
Traffic elements have no camera in their text: they are those of the front view.
The way back gives every number its decimals, which the challenge's scorer needs to see it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapt.coords import NUSCENES, EmptyBoxError, MosaicLayout, format_boxes
from adapt.records import Dropped, SkipError

TRAFFIC_CAMERA = "CAM_FRONT"

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_TAG_START = re.compile(r"<\s*c\d+\s*,")
_TAG = re.compile(rf"<\s*(c\d+)\s*,\s*(\w+)\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*>")
_MOSAIC_TAG = re.compile(
    rf"<\s*(c[^,<>\[\]]*?)\s*,\s*(\w+)\s*,\s*\[\s*({_NUMBER})\s*[,\s]\s*({_NUMBER})\s*\]\s*>"
)
# A prediction may stop inside a box, at the limit of its length.
_BOXES_AFTER_TAG = re.compile(r"(<\s*c[^<>]*>)(?:\s*<box>[^<]*(?:</box>|$))+")

# A label has a letter: five bare numbers are no traffic element.
_ELEMENT = (
    rf"\(\s*(?=[^()\[\]]*[^\W\d])([^()\[\]]*?)\s*,"
    rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
)
_TRAFFIC_ELEMENT = re.compile(_ELEMENT)
_TRAFFIC_LIST = re.compile(rf"\[\s*{_ELEMENT}(?:\s*,\s*{_ELEMENT})*\s*,?\s*\]")
_UNREAD_BOX = re.compile(rf"-?\d*\.\d+(?:\s*,\s*{_NUMBER}){{3}}")
_VIEW_PX = re.compile(r"-?\d+\.\d\d")

ObjectKey = tuple[str, str, float, float]
"""Identifier, camera, x, y of a tag, whatever its spacing."""


class TextError(SkipError):
    """A text of the raw file cannot be converted."""


@dataclass(frozen=True, slots=True)
class ObjectBoxes:
    """The objects of a frame, to put a box behind each of their tags.

    Args:
        boxes_px: `2d_bbox` of each object, in pixels of its view: x1, y1, x2, y2.
    """

    boxes_px: Mapping[ObjectKey, object]

    def box_text(self, key: ObjectKey, layout: MosaicLayout) -> str:
        """Return `<box>[[x1, y1, x2, y2]]</box>` in mosaic coordinates.

        Raises:
            TextError: The object is unknown, or its box is malformed, empty or out of view.
        """
        tag = "<{},{},{:g},{:g}>".format(*key)
        if key not in self.boxes_px:
            raise TextError("tag-not-in-objects", f"{tag} is no key of key_object_infos")
        box_px = read_box(self.boxes_px[key])
        if box_px is None:
            found = self.boxes_px[key]
            raise TextError("bad-box", f"2d_bbox of {tag} is {found!r}, expected 4 numbers")
        try:
            return format_boxes([layout.box_to_1000(key[1], box_px)])
        except EmptyBoxError as error:
            raise TextError(box_fault(box_px), f"2d_bbox of {tag}: {error}") from error


def read_box(value: object) -> tuple[float, float, float, float] | None:
    """Return four numbers, or None when `value` is anything else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(type(number) in (int, float) for number in value):
        return None
    try:
        x1, y1, x2, y2 = map(float, value)
    except OverflowError:
        # A whole number of hundreds of digits.
        return None
    return x1, y1, x2, y2


def box_fault(box_px: Sequence[float]) -> str:
    """Return the reason to count a box under that `clamp_box` refuses."""
    x1, y1, x2, y2 = box_px
    return "box-outside-view" if x1 < x2 and y1 < y2 else "box-empty"


def object_key(tag: str) -> ObjectKey | None:
    """Return what a tag names, or None when it is no tag.

    >>> object_key("<c1, CAM_BACK,1088.3, 497.5>")
    ('c1', 'CAM_BACK', 1088.3, 497.5)
    """
    found = _TAG.fullmatch(tag.strip())
    return (found[1], found[2], float(found[3]), float(found[4])) if found else None


def tags_to_mosaic(
    text: str, boxes: ObjectBoxes | None = None, layout: MosaicLayout = NUSCENES
) -> str:
    """Return `text` with every tag in mosaic coordinates.

    >>> tags_to_mosaic("Is <c1,CAM_BACK,1088.3,497.5> a traffic sign?")
    'Is <c1,CAM_BACK,[560, 776]> a traffic sign?'

    Args:
        text: A question or an answer of the raw file.
        boxes: Put each object's box behind its tag.
        layout: Of the mosaic.

    Raises:
        TextError: A tag is malformed, of an unknown camera, or has no usable box.
    """

    def convert(tag: re.Match[str]) -> str:
        identifier, camera = tag[1], tag[2]
        x_px, y_px = float(tag[3]), float(tag[4])
        try:
            x, y = layout.point_to_1000(camera, x_px, y_px)
        except KeyError as error:
            raise TextError("unknown-camera", f"{tag[0]}: {camera} is no camera here") from error
        box = boxes.box_text((identifier, camera, x_px, y_px), layout) if boxes else ""
        return f"<{identifier},{camera},[{x}, {y}]>{box}"

    if "<" not in text:
        return text
    converted, count = _TAG.subn(convert, text)
    if len(_TAG_START.findall(text)) != count:
        raise TextError("malformed-tag", f"{text[:200]!r}: expected tags like <c1,CAM_X,1.0,2.0>")
    return converted


def lists_to_mosaic(text: str, layout: MosaicLayout = NUSCENES) -> tuple[str, tuple[Dropped, ...]]:
    """Return `text` with lists of traffic elements in mosaic coordinates, and what was dropped.

    >>> lists_to_mosaic("[(traffic light, green, 674.86, 0.14, 723.33, 109.18)].")[0]
    '[(traffic light, green, 474, 0, 484, 61)].'

    Args:
        text: An answer of the raw file.
        layout: Of the mosaic.

    Raises:
        TextError: A list is malformed, or no element of it is left.
    """
    dropped: list[Dropped] = []

    def convert(found: re.Match[str]) -> str:
        kept = []
        for element in _TRAFFIC_ELEMENT.finditer(found[0]):
            label, *numbers = element.groups()
            box_px = tuple(map(float, numbers))
            try:
                box = layout.box_to_1000(TRAFFIC_CAMERA, box_px)
            except EmptyBoxError as error:
                dropped.append(Dropped(element[0], box_fault(box_px), str(error)))
                continue
            kept.append(f"({label}, {', '.join(map(str, box))})")
        if not kept:
            raise TextError("empty-list", f"{found[0][:200]}: no box lies in the view")
        return f"[{', '.join(kept)}]"

    converted = _TRAFFIC_LIST.sub(convert, text)
    if unread := _UNREAD_BOX.search(converted):
        raise TextError(
            "malformed-list", f"{unread[0]}: expected [(category, status, x1, y1, x2, y2), ...]"
        )
    return converted, tuple(dropped)


def to_original(text: str, layout: MosaicLayout = NUSCENES) -> str:
    """Return a text in mosaic coordinates as the raw files write it, boxes behind tags removed.

    Coordinates are clamped to the view that the tag names, points with one decimal, traffic
    elements with two. What is no tag or element stays as it is, and a text that has been
    converted already does too.

    >>> to_original("<c1, CAM_BACK,[560,776]><box>[[537, 724, 589, 829]]</box>.")
    '<c1,CAM_BACK,1088.0,496.8>.'
    """

    def point(tag: re.Match[str]) -> str:
        identifier, camera = tag[1], tag[2]
        try:
            x_px, y_px = layout.point_from_1000(camera, float(tag[3]), float(tag[4]))
        except KeyError:
            return tag[0]
        return f"<{identifier},{camera},{_decimals(x_px, 1)},{_decimals(y_px, 1)}>"

    def element(found: re.Match[str]) -> str:
        label, *numbers = found.groups()
        if all(_VIEW_PX.fullmatch(number) for number in numbers):
            return found[0]
        box_px = layout.box_from_1000(TRAFFIC_CAMERA, tuple(map(float, numbers)))
        return f"({label}, {', '.join(_decimals(number, 2) for number in box_px)})"

    without_boxes = _BOXES_AFTER_TAG.sub(r"\1", text)
    return _TRAFFIC_ELEMENT.sub(element, _MOSAIC_TAG.sub(point, without_boxes))


def _decimals(value: float, count: int) -> str:
    # Adding 0.0 turns a negative zero into zero.
    return f"{value + 0.0:.{count}f}"
