"""Check one line of a records file: the schema, then what a schema cannot say.

The schema (`schemas/record.schema.json`) is the truth. A line is first decoded into typed
structs, which is fifty times faster; only a line that the decoder refuses is put to the schema,
which then lists every problem. A test shows that both agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from adapt.coords import BIN, Box1000, parse_box_list
from adapt.problems import Problem, schema_problems, show
from adapt.records import IMAGE_PLACEHOLDER, Message, RecordLine, is_safe_path

LARGEST_SIZE = 2**31 - 1
IMAGE_TOKEN = "<IMG_CONTEXT>"

_SPEAKERS = ("human", "gpt")
_DECODE = msgspec.json.Decoder(RecordLine).decode
_DECODE_BOXES = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_MARKUP = re.compile(r"<(/?)(box|ref)>|<c\d+\s*,\s*[A-Za-z]\w*\s*,[^<>]*>|<IMG_CONTEXT>")
_GOOD_POINT = re.compile(r"<c[0-9]+,[A-Za-z]\w*,\[([0-9]{1,4}), ?([0-9]{1,4})\]>")
# Quotes of the keys and strings that a record always has, and those of each turn.
_QUOTES, _QUOTES_A_TURN = 34, 8
_BOXES_EXPECTED = f"[[x1, y1, x2, y2], ...] of whole numbers 0 to {BIN}, x1 <= x2, y1 <= y2"


class Checked(NamedTuple):
    """What a line holds.

    Args:
        id: The record's id, empty when it cannot be told.
        record: The record, None when the line is none by the schema.
        problems: Everything that is wrong with it.
    """

    id: str
    record: RecordLine | None
    problems: list[Problem]


def check_line(line: bytes) -> Checked:
    """Return what a line holds, and every problem of it."""
    record = decode_record(line)
    if record is None:
        return _check_damaged(line)
    problems = record_problems(record)
    if _may_repeat_keys(record, line):
        problems += _repeated_keys(line)
    return Checked(record.id, record, problems)


def decode_record(line: bytes) -> RecordLine | None:
    """Return the record of a line, or None when it is not what the schema asks for."""
    try:
        record = _DECODE(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    source = record.source
    complete = record.id and record.task and source.dataset and source.split and source.row
    if not complete or "" in record.image or len(record.conversations) < 2:
        return None
    for sizes in (record.width_list, record.height_list):
        if sizes and (min(sizes) < 1 or max(sizes) > LARGEST_SIZE):
            return None
    return record


def record_problems(record: RecordLine) -> list[Problem]:
    """Return what is wrong with a record that the schema finds nothing wrong with."""
    return [
        *_path_problems(record.image),
        *_size_problems(record.image, record.width_list, record.height_list),
        *_turn_problems(record.conversations),
        *_text_problems(record.image, record.conversations),
        *_extra_problems(record.extra),
    ]


def _path_problems(images: Sequence[str]) -> list[Problem]:
    return [
        Problem(f"$.image[{index}]", show(path), "a path that stays below the dataset's root")
        for index, path in enumerate(images)
        if not is_safe_path(path)
    ]


def _size_problems(
    images: Sequence[str], widths: Sequence[int], heights: Sequence[int]
) -> list[Problem]:
    if len(widths) == len(heights) == len(images):
        return []
    return [
        Problem(f"$.{key}", f"{len(sizes)} entries", f"{len(images)}, one for each of $.image")
        for key, sizes in (("width_list", widths), ("height_list", heights))
        if len(sizes) != len(images)
    ]


def _turn_problems(turns: Sequence[Message]) -> list[Problem]:
    """Check order and emptiness; only the last answer may be empty."""
    problems = []
    last = len(turns) - 1
    for index, turn in enumerate(turns):
        speaker = _SPEAKERS[index & 1]
        if turn.speaker != speaker:
            expected = f'"{speaker}": turns alternate, human first'
            problems.append(Problem(f"$.conversations[{index}].from", show(turn.speaker), expected))
        value = turn.value
        if not value or value.isspace():
            if value == "" and index == last and index & 1:
                continue
            expected = "text (only the last answer may be empty, and then without blanks)"
            problems.append(Problem(f"$.conversations[{index}].value", show(value), expected))
    if len(turns) % 2:
        expected = "an even number: an answer to each human turn"
        problems.append(Problem("$.conversations", f"{len(turns)} turns", expected))
    return problems


def _text_problems(images: Sequence[str], turns: Sequence[Message]) -> list[Problem]:
    """Check the placeholders against the images, and the markup of each turn."""
    problems: list[Problem] = []
    found = 0
    for index, turn in enumerate(turns):
        text = turn.value
        signs = text.count("<")
        if not signs:
            continue
        place = f"$.conversations[{index}].value"
        placeholders = text.count(IMAGE_PLACEHOLDER)
        found += placeholders
        if placeholders and turn.speaker == "gpt":
            held = f"{placeholders} {IMAGE_PLACEHOLDER} in an answer"
            problems.append(Problem(place, held, "pictures in human turns only"))
        if signs != placeholders:
            problems += _markup_problems(place, text)
    if found != len(images):
        expected = f"{len(images)}, one for each of $.image"
        problems.append(Problem("$.conversations", f"{found} {IMAGE_PLACEHOLDER}", expected))
    return problems


def _markup_problems(place: str, text: str) -> list[Problem]:
    """Check that `<box>` and `<ref>` open and close in turn, what is in boxes and point tags."""
    problems = []
    opened: re.Match[str] | None = None
    for tag in _MARKUP.finditer(text):
        closing, name = tag.groups()
        if name is None:
            problems += _single_tag_problems(place, tag[0])
        elif not closing:
            if opened is not None:
                problems.append(_unclosed(place, opened))
            opened = tag
        elif opened is None or opened[2] != name:
            problems.append(Problem(place, f"{tag[0]} at {tag.start()}", f"<{name}> before it"))
            opened = None
        else:
            if name == "box":
                problems += box_problems(place, text[opened.end() : tag.start()])
            opened = None
    if opened is not None:
        problems.append(_unclosed(place, opened))
    return problems


def _single_tag_problems(place: str, tag: str) -> list[Problem]:
    """Check a tag that stands alone: a point of a view, `<c1,CAM_FRONT,[x, y]>`, or a token."""
    if tag == IMAGE_TOKEN:
        return [Problem(place, tag, f"{IMAGE_PLACEHOLDER} for a picture")]
    point = _GOOD_POINT.fullmatch(tag)
    if point is not None and int(point[1]) <= BIN and int(point[2]) <= BIN:
        return []
    return [Problem(place, show(tag)[1:-1], f"<c1,CAMERA,[x, y]> with whole numbers 0 to {BIN}")]


def _unclosed(place: str, tag: re.Match[str]) -> Problem:
    return Problem(place, f"{tag[0]} at {tag.start()}", f"</{tag[2]}> after it")


def box_problems(place: str, text: str) -> list[Problem]:
    """Return what is wrong with the inside of a `<box>` element."""
    try:
        boxes = _read_boxes(text)
    except ValueError:
        return [Problem(place, f"<box>{show(text)[1:-1]}</box>", _BOXES_EXPECTED)]
    return [
        Problem(place, f"box {list(box)}", _BOXES_EXPECTED) for box in boxes if not is_box_1000(box)
    ]


def _read_boxes(text: str) -> list[Box1000]:
    """Read boxes as JSON, which neat ones are, eight times faster than by pattern."""
    try:
        boxes = _DECODE_BOXES(text)
    except msgspec.DecodeError:
        boxes = []
    return boxes or parse_box_list(text)


def is_box_1000(box: Box1000) -> bool:
    """Return whether four whole numbers are a box in 0-1000."""
    x1, y1, x2, y2 = box
    return 0 <= x1 <= x2 <= BIN and 0 <= y1 <= y2 <= BIN


def _extra_problems(extra: str) -> list[Problem]:
    if not extra:
        return []
    try:
        orjson.loads(extra)
    except orjson.JSONDecodeError as error:
        found = f"{show(extra)} ({error.msg} at {error.pos})"
        return [Problem("$.extra", found, "one string of JSON, or an empty one")]
    return []


def _check_damaged(line: bytes) -> Checked:
    """List every problem of a line that is no record by the schema."""
    identifier = ""
    try:
        line.decode()
        value = orjson.loads(line)
        problems = schema_problems(value, "record")
        if isinstance(value, dict):
            identifier = _sound(value.get("id"), str) or ""
            problems += _partial_problems(value)
            problems += _repeated_keys(line)
    except UnicodeDecodeError as error:
        found = f"bytes that are no UTF-8 at column {error.start + 1}"
        problems = [Problem("$", found, "UTF-8 text")]
    except orjson.JSONDecodeError as error:
        found = f"JSON that breaks at column {error.colno} ({error.msg})"
        problems = [Problem("$", found, "one JSON object a line")]
    except RecursionError:
        problems = [Problem("$", "JSON nested too deeply to read", "a record")]
    return Checked(identifier, None, problems)


def _partial_problems(value: dict[str, Any]) -> list[Problem]:
    """Check those keys of a damaged record that are sound in themselves."""
    images = _sound(value.get("image"), list[str])
    widths = _sound(value.get("width_list"), list[int])
    heights = _sound(value.get("height_list"), list[int])
    turns = _sound(value.get("conversations"), list[Message])
    extra = _sound(value.get("extra"), str)
    problems: list[Problem] = []
    if images is not None:
        problems += _path_problems([path or "x" for path in images])
        if widths is not None and heights is not None:
            problems += _size_problems(images, widths, heights)
    if turns is not None and images is not None:
        problems += _text_problems(images, turns)
    else:
        problems += _loose_markup_problems(value.get("conversations"))
    if turns is not None:
        problems += _turn_problems(turns)
    return problems + _extra_problems(extra or "")


def _loose_markup_problems(turns: object) -> list[Problem]:
    """Check the markup of whatever text there is in damaged turns."""
    problems: list[Problem] = []
    for index, turn in enumerate(turns if isinstance(turns, list) else []):
        if isinstance(turn, dict) and isinstance(text := turn.get("value"), str):
            problems += _markup_problems(f"$.conversations[{index}].value", text)
    return problems


def _sound(value: object, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _may_repeat_keys(record: RecordLine, line: bytes) -> bool:
    """Tell by the number of quotes: a repeated key adds two or more; doubts cost a second look."""
    expected = _QUOTES + _QUOTES_A_TURN * len(record.conversations) + 2 * len(record.image)
    found = line.count(b'"')
    if found == expected:
        return False
    return found - line.count(b'\\"') != expected or b"\\\\" in line


def _repeated_keys(line: bytes) -> list[Problem]:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    # Numbers stay texts: one of thousands of digits would be refused.
    json.loads(line, object_pairs_hook=collect, parse_int=str, parse_float=str)
    return [Problem("$", f"key {show(key)} more than once", "each key once") for key in repeated]
