"""Coordinates: exact values, and pixel -> text -> pixel within half a bin."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapt.coords import (
    NUSCENES,
    EmptyBoxError,
    box_from_1000,
    box_to_1000,
    clamp_box,
    format_boxes,
    parse_box_list,
    pixel_from_1000,
    pixel_to_1000,
    round_half_away,
)

SIDES = st.integers(1, 20_000)
CAMERAS = st.sampled_from([camera for row in NUSCENES.cameras for camera in row])


def test_rounding_is_half_away_from_zero() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994, 1e15 + 0.5]
    assert [round_half_away(value) for value in values] == [1, 2, 3, -1, -2, 0, 10**15 + 1]


def test_every_half_of_whole_pixels_is_rounded_up() -> None:
    halves = [
        (pixel, side)
        for side in range(1, 2001)
        for pixel in range(side + 1)
        if pixel * 2000 % side == 0 and pixel * 2000 // side % 2 == 1
    ]
    assert len(halves) == 3400
    for pixel, side in halves:
        assert pixel_to_1000(pixel, side) == (pixel * 2000 // side + 1) // 2


@given(CAMERAS, st.integers(0, 160_000), st.integers(0, 90_000))
@example("CAM_FRONT", 1890, 1890)
def test_a_point_as_written_is_rounded_exactly(camera: str, x: int, y: int) -> None:
    """Against fractions, for points with two decimals: 1890 is 18.9."""
    left, top = NUSCENES.origin(camera)
    exact = (
        (left + Fraction(x, 100) * 896 / 1600) * 1000 / 2688,
        (top + Fraction(y, 100) * 448 / 900) * 1000 / 896,
    )
    rounded = tuple(math.floor(value + Fraction(1, 2)) for value in exact)
    assert NUSCENES.point_to_1000(camera, x / 100, y / 100) == rounded


@given(st.data(), SIDES)
def test_pixel_round_trip_is_within_half_a_bin(data: st.DataObject, side: int) -> None:
    pixel = data.draw(st.floats(0, side))
    text = pixel_to_1000(pixel, side)
    assert 0 <= text <= 1000
    assert abs(pixel_from_1000(text, side) - pixel) <= side / 2000 * (1 + 1e-9)


@given(st.data(), SIDES, SIDES)
def test_box_round_trip_is_within_half_a_bin(data: st.DataObject, width: int, height: int) -> None:
    x1, x2 = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
    y1, y2 = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
    assume(x1 < x2 and y1 < y2)
    back = box_from_1000(box_to_1000((x1, y1, x2, y2), width, height), width, height)
    for found, pixel, side in zip(
        back, (x1, y1, x2, y2), (width, height, width, height), strict=True
    ):
        assert abs(found - pixel) <= side / 2000 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 10, 10, 20), "has no area"),
        ((20, 10, 10, 20), "has no area"),
        ((-5, 10, 0, 20), "lies outside"),
        ((100, 10, 120, 20), "lies outside"),
        ((math.nan, 0, 1, 1), "no number"),
        ((0, 0, math.inf, 1), "no number"),
    ],
)
def test_empty_and_outside_boxes_are_refused(box: tuple[float, ...], words: str) -> None:
    with pytest.raises(EmptyBoxError, match=words):
        clamp_box(box, 100, 100)


def test_a_box_over_the_edge_is_clamped() -> None:
    assert clamp_box((-5, -5, 50, 200), 100, 100) == (0, 0, 50, 100)
    assert box_to_1000((-5, -5, 50, 200), 100, 100) == (0, 0, 500, 1000)


def test_nuscenes_mosaic_is_the_papers() -> None:
    assert (NUSCENES.width, NUSCENES.height) == (2688, 896)
    assert NUSCENES.point_to_1000("CAM_FRONT_LEFT", 0, 0) == (0, 0)
    assert NUSCENES.point_to_1000("CAM_FRONT", 800, 450) == (500, 250)
    assert NUSCENES.point_to_1000("CAM_BACK", 1088.3, 497.5) == (560, 776)
    assert NUSCENES.point_to_1000("CAM_BACK_RIGHT", 1600, 900) == (1000, 1000)
    assert NUSCENES.box_to_1000("CAM_BACK", (966.6, 403.3, 1224.1, 591.7)) == (535, 724, 588, 829)


def test_a_point_outside_its_view_stays_in_its_cell() -> None:
    """The real sample has y = -0.5, which would land in another camera's row."""
    assert NUSCENES.point_to_1000("CAM_BACK", 800, -0.5) == (500, 500)
    assert NUSCENES.point_to_1000("CAM_FRONT", 1700, 450) == (667, 250)


@given(CAMERAS, st.floats(0, 1600), st.floats(0, 900))
def test_mosaic_round_trip_is_within_half_a_bin_of_the_mosaic(
    camera: str, x_px: float, y_px: float
) -> None:
    x, y = NUSCENES.point_to_1000(camera, x_px, y_px)
    x_back, y_back = NUSCENES.point_from_1000(camera, x, y)
    assert abs(x_back - x_px) * 896 / 1600 <= 2688 / 2000 * (1 + 1e-9)
    assert abs(y_back - y_px) * 448 / 900 <= 896 / 2000 * (1 + 1e-9)


@given(CAMERAS, st.floats(-500, 1500), st.floats(-500, 1500))
def test_the_way_back_never_leaves_the_view(camera: str, x: float, y: float) -> None:
    x_px, y_px = NUSCENES.point_from_1000(camera, x, y)
    assert 0 <= x_px <= 1600
    assert 0 <= y_px <= 900


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=5))
def test_box_text_round_trip(boxes: list[tuple[int, int, int, int]]) -> None:
    text = format_boxes(boxes)
    assert parse_box_list(text.removeprefix("<box>").removesuffix("</box>")) == boxes


@pytest.mark.parametrize("text", ["", "[]", "[[1, 2, 3]]", "[1, 2, 3, 4]", "[[1, 2, 3, 4.5]]"])
def test_other_texts_are_no_boxes(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_box_list(text)
