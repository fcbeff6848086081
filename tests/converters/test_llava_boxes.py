"""The boxes of the llava converter: ranges, frames, and the way back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from llava_rows import convert, convert_row, llava_row, record, texts, write_list, write_pictures
from PIL import Image

from adapt.cli import run
from adapt.converters._text_boxes import (
    BoxError,
    BoxReading,
    BoxStyle,
    convert_boxes,
    square_from_1000,
    square_to_1000,
    unit_from_1000,
)
from adapt.coords import parse_box_list, pixel_to_1000
from adapt.dataset import read_manifest
from adapt.errors import SourceError
from adapt.records import Skip

UNITS = BoxStyle("0-1000", "0-1")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "raw")


def test_boxes_of_llava(raw: Path) -> None:
    """The record quoted in InternVL's issue 211, its picture's name changed."""
    asked = "<image>\nPlease provide a short description for this region: "
    question = f"{asked}[0.04, 0.35, 0.27, 0.43]."
    result = record(convert_row(raw, llava_row(question, "Red and white sign.", image="a.jpg")))
    assert texts(result) == [
        f"{asked}<box>[[40, 350, 270, 430]]</box>.",
        "Red and white sign.",
    ]
    assert result.notes == ("boxes 0-1 of the picture (data.json)",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<box>[[10, 20, 30, 40]]</box>", "<box>[[10, 20, 30, 40]]</box>"),
        ("<box>[[1,2,3,4],[5,6,7,8]]</box>", "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"),
        ("<box>[10, 20, 30, 40]</box>", "<box>[[10, 20, 30, 40]]</box>"),
        ("<box>[[5, 6, 5, 6]]</box>", "<box>[[5, 6, 5, 6]]</box>"),
        ("[0.1, 0.2, 0.3, 0.4]", "<box>[[100, 200, 300, 400]]</box>"),
        ("[[0.1,0.2,0.3,0.4], [0, 0, 1, .5]]",
         "<box>[[100, 200, 300, 400], [0, 0, 1000, 500]]</box>"),
        ("[0.0005, 0, 1, 1]", "<box>[[1, 0, 1000, 1000]]</box>"),
        ("[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3]"),
        ("[1, 2, 3, 4] and [0.1, 0.2, 3, 4]", "[1, 2, 3, 4] and [0.1, 0.2, 3, 4]"),
        ("[-0.1, 0.2, 0.3, 0.4]", "[-0.1, 0.2, 0.3, 0.4]"),
        ("a [0.1, 0.2, 0.3, 0.4] b <box>[[1, 2, 3, 4]]</box> c",
         "a <box>[[100, 200, 300, 400]]</box> b <box>[[1, 2, 3, 4]]</box> c"),
        ("no box", "no box"),
    ],
)  # fmt: skip
def test_texts(text: str, expected: str) -> None:
    assert convert_boxes(text, BoxReading(UNITS))[0] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<box>[]</box>", "box-malformed"),
        ("<box>[[1, 2, 3]]</box>", "box-malformed"),
        ("<box>[[1, 2, 3, 1200]]</box>", "box-out-of-range"),
        ("<box>[[-1, 2, 3, 4]]</box>", "box-out-of-range"),
        ("<box>[[30, 2, 3, 4]]</box>", "box-empty"),
        ("[0.5, 0.2, 0.4, 0.6]", "box-empty"),
        ("[0.5, 0.2, 0.5, 0.6]", "box-empty"),
    ],
)
def test_boxes_that_cannot_be_brought_over(text: str, reason: str) -> None:
    with pytest.raises(BoxError) as caught:
        convert_boxes(text, BoxReading(UNITS))
    assert caught.value.reason == reason


def test_bare_boxes_of_rows_without_pictures_are_left_alone(raw: Path) -> None:
    write_list(
        raw,
        llava_row("<image>\n[0.1, 0.2, 0.3, 0.4]?", "x", image="a.jpg"),
        llava_row("What is the sum of [0.1, 0.2, 0.3, 0.4]?", "1.0"),
    )
    assert [texts(result)[0] for result in convert(raw)] == [
        "<image>\n<box>[[100, 200, 300, 400]]</box>?",
        "What is the sum of [0.1, 0.2, 0.3, 0.4]?",
    ]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (["[[0, 0, 1, 1]]", "[[0, 0, 1, 0]]"],
         r"all boxes hold only 0 and 1 \(2 in all\), of 0-1 or of 0-1000; say which with"),
        (["[[0.1, 0.2, 0.3, 0.4]]", "[[10, 20, 30, 40]]"],
         r"some boxes look like 0-1000 \(1\) and some like 0-1 \(1\); say which with --box-range"),
    ],
)  # fmt: skip
def test_a_file_that_could_be_either(raw: Path, boxes: list[str], message: str) -> None:
    rows = (llava_row("<image>?", f"<box>{box}</box>", image="a.jpg") for box in boxes)
    write_list(raw, *rows)
    with pytest.raises(SourceError, match=message):
        convert(raw)


@pytest.mark.parametrize(
    ("box_range", "expected"),
    [
        ("0-1", "<box>[[0, 0, 1000, 1000]]</box> <box>[[0, 0, 1000, 1000]]</box> [3, 4, 5, 6]"),
        ("0-1000",
         "<box>[[0, 0, 1, 1]]</box> <box>[[0, 0, 1, 1]]</box> <box>[[3, 4, 5, 6]]</box>"),
        ("none", "<box>[[0, 0, 1, 1]]</box> [0, 0, 1, 1] [3, 4, 5, 6]"),
    ],
)  # fmt: skip
def test_the_range_said(raw: Path, box_range: str, expected: str) -> None:
    answer = "<box>[[0, 0, 1, 1]]</box> [0, 0, 1, 1] [3, 4, 5, 6]"
    result = convert_row(raw, llava_row("<image>?", answer, image="a.jpg"), box_range=box_range)
    assert texts(result)[1] == expected


def test_the_choice_is_recorded(raw: Path, tmp_path: Path) -> None:
    box = "<box>[[0, 0, 1, 1]]</box>"
    write_list(raw, llava_row("<image>?", box, image="a.jpg"), name="either.json")
    write_list(raw, llava_row("<image>?", "[0.1, 0.2, 0.3, 0.4]", image="a.jpg"), name="unit.json")
    out = tmp_path / "out"
    assert run(["convert", "llava", str(raw), "--out", str(tmp_path / "unclear")]) == 2
    assert run(["convert", "llava", str(raw), "--out", str(out), "--box-range", "0-1"]) == 0
    manifest = read_manifest(out)
    assert manifest is not None
    entry = manifest["splits"]["train"]
    assert entry["made_by"]["options"]["box_range"] == "0-1"
    assert entry["ledger"]["notes"] == {
        "boxes 0-1 of the picture (either.json)": 1,
        "boxes 0-1 of the picture (unit.json)": 1,
    }


# --- The padded square --------------------------------------------------------------------------


def grounding_rows(
    generator: random.Random, sizes: dict[str, tuple[int, int]], number: int, *, square: bool
) -> Iterator[tuple[dict[str, object], tuple[int, ...]]]:
    """Yield rows with a box in two decimals, and that box in 0-1000 of the picture."""
    for _ in range(number):
        image = generator.choice(sorted(sizes))
        width, height = sizes[image]
        x1, x2 = sorted(generator.sample(range(0, width + 1, 20), 2))
        y1, y2 = sorted(generator.sample(range(0, height + 1, 20), 2))
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        if square:
            unit = [(x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side]
        else:
            unit = [x1 / width, y1 / height, x2 / width, y2 / height]
        text = "[" + ", ".join(f"{value:.2f}" for value in unit) + "]"
        pixels = zip((x1, y1, x2, y2), sizes[image] * 2, strict=True)
        truth = tuple(pixel_to_1000(value, length) for value, length in pixels)
        yield llava_row("<image>\nWhere?", text, image=image), truth


@pytest.mark.parametrize("square", [True, False])
def test_the_frame_is_told_from_many_boxes(raw: Path, square: bool) -> None:
    sizes = {"vg/wide.png": (400, 200), "vg/tall.png": (200, 360), "vg/square.png": (300, 300)}
    for name, size in sizes.items():
        Image.new("L", size).save(raw / name)
    pairs = list(grounding_rows(random.Random(1), sizes, 200, square=square))
    write_list(raw, *(row for row, _ in pairs))
    results = [record(result) for result in convert(raw)]
    frame = "square" if square else "picture"
    assert Counter(note for result in results for note in result.notes) == {
        f"boxes 0-1 of the {frame} (data.json)": 200
    }
    for result, (_, truth) in zip(results, pairs, strict=True):
        (box,) = parse_box_list(result.turns[1].text[5:-6])
        # Two decimals of a side twice as long as the picture's are ten bins at most.
        assert all(abs(a - b) <= 10 for a, b in zip(box, truth, strict=True)), (box, truth)


def test_each_first_folder_has_its_own_frame(raw: Path) -> None:
    vg, coco = {"vg/wide.png": (400, 200)}, {"coco/wide.png": (400, 200)}
    (raw / "coco").mkdir()
    for name, size in (vg | coco).items():
        Image.new("L", size).save(raw / name)
    generator = random.Random(2)
    pairs = [
        *grounding_rows(generator, vg, 100, square=True),
        *grounding_rows(generator, coco, 100, square=False),
    ]
    write_list(raw, *(row for row, _ in pairs))
    results = [record(result) for result in convert(raw)]
    assert {result.image[0].split("/")[0]: result.notes[0] for result in results} == {
        "vg": "boxes 0-1 of the square (data.json)",
        "coco": "boxes 0-1 of the picture (data.json)",
    }


def test_few_boxes_are_of_the_picture_unless_said(raw: Path) -> None:
    row = llava_row("<image>?", "[0.0, 0.25, 0.5, 0.5]", image="a.jpg")
    assert texts(convert_row(raw, row))[1] == "<box>[[0, 250, 500, 500]]</box>"
    said = convert_row(raw, row, box_frame="square")
    assert texts(said)[1] == "<box>[[0, 0, 500, 500]]</box>"
    assert record(said).notes == ("boxes 0-1 of the square (data.json)",)
    tagged = llava_row("<image>?", "<box>[[250, 0, 500, 500]]</box>", image="vg/b.jpg")
    assert texts(convert_row(raw, tagged, box_frame="square"))[1] == "<box>[[0, 0, 500, 500]]</box>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava_row("<image>?", "[0.0, 0.0, 0.5, 0.2]", image="a.jpg"), "box-outside"),
        (llava_row("<image>?", "[0.0, 0.3, 0.5, 0.5]", image="gone.jpg"), "image-missing"),
        (llava_row("<image>?", "[0.0, 0.3, 0.5, 0.5]", image="../a.jpg"), "unsafe-path"),
        (llava_row("<image><image>", "[0.0, 0.3, 0.5, 0.5]", image=["a.jpg", "c.png"]),
         "box-of-several-pictures"),
    ],
)  # fmt: skip
def test_what_a_square_frame_cannot_place(raw: Path, row: object, reason: str) -> None:
    result = convert_row(raw, row, box_frame="square")
    assert isinstance(result, Skip)
    assert result.reason == reason


SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
SPANS = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(size=SIZES, across=SPANS, down=SPANS)
def test_pixels_to_text_to_pixels_of_the_square(
    size: tuple[int, int], across: list[float], down: list[float]
) -> None:
    """The round trip stays within half a bin of the picture that the model sees."""
    width, height = size
    assume(across[0] < across[1] and down[0] < down[1])
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = [across[0] * width, down[0] * height, across[1] * width, down[1] * height]
    unit = tuple((v + pad) / side for v, pad in zip(pixels, (left, top) * 2, strict=True))
    assume(unit[0] < unit[2] and unit[1] < unit[3])
    box = square_to_1000(unit, width, height)
    back = square_from_1000(box, width, height)
    for value, found, measure in zip(unit, back, size * 2, strict=True):
        assert abs(value - found) * side <= measure / 2000 + 1e-6


@given(across=SPANS, down=SPANS)
def test_units_to_text_to_units(across: list[float], down: list[float]) -> None:
    unit = (across[0], down[0], across[1], down[1])
    assume(across[0] < across[1] and down[0] < down[1])
    text = "[" + ", ".join(f"{value:.6f}" for value in unit) + "]"
    assume(len({*text[1:-1].split(", ")[::2]}) == len({*text[1:-1].split(", ")[1::2]}) == 2)
    converted, _ = convert_boxes(text, BoxReading(UNITS))
    (box,) = parse_box_list(converted[5:-6])
    pairs = zip(unit_from_1000(box), unit, strict=True)
    assert all(abs(found - value) <= 1 / 2000 + 1e-6 for found, value in pairs)
