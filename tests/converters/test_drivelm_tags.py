"""Tags, boxes and lists of traffic elements: to the mosaic and back."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.converters._drivelm_tags import (
    ObjectBoxes,
    TextError,
    lists_to_mosaic,
    object_key,
    tags_to_mosaic,
    to_original,
)
from adapt.coords import NUSCENES

CAMERAS = [camera for row in NUSCENES.cameras for camera in row]
# Half a bin of the 2688x896 mosaic, in pixels of a 1600x900 view.
HALF_BIN_X_PX = 0.5 / 1000 * 2688 / 896 * 1600
HALF_BIN_Y_PX = 0.5 / 1000 * 896 / 448 * 900

cameras = st.sampled_from(CAMERAS)
tenths = st.integers(-200, 17000).map(lambda n: n / 10)


def reason(text: str, boxes: ObjectBoxes | None = None) -> str:
    with pytest.raises(TextError) as caught:
        tags_to_mosaic(text, boxes)
    return caught.value.reason


class TestTags:
    def test_every_camera(self) -> None:
        """The middle of each 1600x900 view is the middle of its cell."""
        text = " ".join(f"<c{i},{camera},800.0,450.0>" for i, camera in enumerate(CAMERAS))
        assert tags_to_mosaic(text) == (
            "<c0,CAM_FRONT_LEFT,[167, 250]> <c1,CAM_FRONT,[500, 250]> "
            "<c2,CAM_FRONT_RIGHT,[833, 250]> <c3,CAM_BACK_LEFT,[167, 750]> "
            "<c4,CAM_BACK,[500, 750]> <c5,CAM_BACK_RIGHT,[833, 750]>"
        )

    @pytest.mark.parametrize(
        "tag",
        [
            "<c1,CAM_BACK,1088.3,497.5>",
            "<c1, CAM_BACK, 1088.3, 497.5>",
            "< c1 ,CAM_BACK ,1088.3 ,497.5 >",
            "<c1,CAM_BACK,\n1088.30,497.50>",
        ],
    )
    def test_spacing_does_not_matter(self, tag: str) -> None:
        assert tags_to_mosaic(f"Is {tag} a car?") == "Is <c1,CAM_BACK,[560, 776]> a car?"

    @pytest.mark.parametrize(
        ("tag", "expected"),
        [
            # y = -0.5 of a rear view would be the last row of the front view above it.
            ("<c1,CAM_BACK,800,-0.5>", "<c1,CAM_BACK,[500, 500]>"),
            ("<c1,CAM_FRONT,800,901.2>", "<c1,CAM_FRONT,[500, 500]>"),
            ("<c1,CAM_FRONT,-7.,.5>", "<c1,CAM_FRONT,[333, 0]>"),
            ("<c1,CAM_FRONT,1700,0>", "<c1,CAM_FRONT,[667, 0]>"),
            ("<c12,CAM_BACK_RIGHT,1600.0,900.0>", "<c12,CAM_BACK_RIGHT,[1000, 1000]>"),
        ],
    )
    def test_a_point_is_clamped_to_its_own_view(self, tag: str, expected: str) -> None:
        assert tags_to_mosaic(tag) == expected

    def test_text_around_is_kept(self) -> None:
        assert tags_to_mosaic("No <tag>, x < y, <box>.") == "No <tag>, x < y, <box>."

    def test_unknown_camera(self) -> None:
        assert reason("<c1,CAM_TOP,1.0,2.0>") == "unknown-camera"

    @pytest.mark.parametrize(
        "text",
        [
            "<c1,CAM_BACK,1088.3>",
            "<c1,CAM_BACK,1088.3,497.5",
            "<c1,CAM_BACK,x,497.5>",
            "<c1,CAM_BACK,1088.3,497.5,3.0>",
            "<c1,CAM BACK,1088.3,497.5>",
            "<c1,CAM_BACK,1.0,2.0> and <c2,CAM_BACK>",
        ],
    )
    def test_malformed(self, text: str) -> None:
        assert reason(text) == "malformed-tag"


class TestBoxes:
    boxes = ObjectBoxes(
        {
            ("c1", "CAM_BACK", 1088.3, 497.5): [966.6, 403.3, 1224.1, 591.7],
            ("c2", "CAM_BACK", 1.0, 2.0): [-50, -50.0, 800, 450],
            ("c3", "CAM_BACK", 1.0, 2.0): [10, 10, 10, 20],
            ("c4", "CAM_BACK", 1.0, 2.0): [20, 10, 10, 20],
            ("c5", "CAM_BACK", 1.0, 2.0): [1700, 10, 1800, 20],
            ("c6", "CAM_BACK", 1.0, 2.0): [10, 10, 20],
            ("c7", "CAM_BACK", 1.0, 2.0): None,
            ("c8", "CAM_BACK", 1.0, 2.0): [10, 10, "20", 20],
            ("c9", "CAM_BACK", 1.0, 2.0): [10, 10, True, 20],
        }
    )

    def test_a_box_follows_each_tag(self) -> None:
        text = "The IDs are <c1,CAM_BACK,1088.3,497.5>, and < c2, CAM_BACK,1,2.0>."
        assert tags_to_mosaic(text, self.boxes) == (
            "The IDs are <c1,CAM_BACK,[560, 776]><box>[[535, 724, 588, 829]]</box>, "
            "and <c2,CAM_BACK,[334, 501]><box>[[333, 500, 500, 750]]</box>."
        )

    @pytest.mark.parametrize(
        ("identifier", "expected"),
        [
            ("c3", "box-empty"),
            ("c4", "box-empty"),
            ("c5", "box-outside-view"),
            ("c6", "bad-box"),
            ("c7", "bad-box"),
            ("c8", "bad-box"),
            ("c9", "bad-box"),
            ("c10", "tag-not-in-objects"),
        ],
    )
    def test_a_useless_box_has_its_reason(self, identifier: str, expected: str) -> None:
        assert reason(f"<{identifier},CAM_BACK,1.0,2.0>", self.boxes) == expected


class TestLists:
    def test_front_pixels_become_mosaic_coordinates(self) -> None:
        text = (
            "There are two. The information is [(traffic light, green, 674.86, 0.14, 723.33, "
            "109.18), (traffic sign, no entry,1018.98,7.19,1071.77,125.6 )]."
        )
        expected = (
            "There are two. The information is [(traffic light, green, 474, 0, 484, 61), "
            "(traffic sign, no entry, 546, 4, 557, 70)]."
        )
        assert lists_to_mosaic(text) == (expected, ())

    def test_a_box_is_clamped(self) -> None:
        text = "[(traffic light, unknown, 1530.22, -0.5, 1600.0, 178.2)]"
        assert lists_to_mosaic(text)[0] == "[(traffic light, unknown, 652, 0, 667, 99)]"

    def test_empty_and_outside_objects_are_dropped_and_told(self) -> None:
        text = (
            "[(light, red, 5.0, 5.0, 5.0, 9.0), (light, green, 0.0, 0.0, 800.0, 450.0), "
            "(sign, stop, 1700.0, 0.0, 1800.0, 9.0)]"
        )
        found, dropped = lists_to_mosaic(text)
        assert found == "[(light, green, 333, 0, 500, 250)]"
        assert [(each.place, each.reason) for each in dropped] == [
            ("(light, red, 5.0, 5.0, 5.0, 9.0)", "box-empty"),
            ("(sign, stop, 1700.0, 0.0, 1800.0, 9.0)", "box-outside-view"),
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "Nothing (in descending order) to see.",
            "There are 3.5 lights [1.0, 2.0].",
            "Position: [(02.99, -01.64), (05.97, -03.33)]",
            "",
        ],
    )
    def test_other_texts_stay(self, text: str) -> None:
        assert lists_to_mosaic(text) == (text, ())

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[(light, red, 5.0, 5.0, 5.0, 9.0)]", "empty-list"),
            ("[(light, red, 5.0, 5.0, 5.0)]", None),
            ("(light, red, 5.0, 5.0, 6.0, 9.0)", "malformed-list"),
            ("[(light (old), red, 5.0, 5.0, 6.0, 9.0)]", "malformed-list"),
            ("[(light, red, 5.0, 5.0, 6.0, 9.0), (light, 1.0)]", "malformed-list"),
            ("[(light, red, 5.0, 5.0, 6.0, 9.0", "malformed-list"),
        ],
    )
    def test_malformed(self, text: str, expected: str | None) -> None:
        if expected is None:
            assert lists_to_mosaic(text) == (text, ())
            return
        with pytest.raises(TextError) as caught:
            lists_to_mosaic(text)
        assert caught.value.reason == expected


class TestToOriginal:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<c1,CAM_BACK,[560, 776]>", "<c1,CAM_BACK,1088.0,496.8>"),
            ("<c1,CAM_BACK,[560,776]>", "<c1,CAM_BACK,1088.0,496.8>"),
            ("< c1 , CAM_BACK , [ 560 , 776 ] >", "<c1,CAM_BACK,1088.0,496.8>"),
            ("<c1,CAM_BACK,[560 776]>", "<c1,CAM_BACK,1088.0,496.8>"),
            ("<c1,CAM_BACK,[560.25, 776.]>", "<c1,CAM_BACK,1089.2,496.8>"),
            ("<c1,CAM_FRONT,[500, 250]>.", "<c1,CAM_FRONT,800.0,450.0>."),
            ("<c1,CAM_FRONT,[333, 0]>", "<c1,CAM_FRONT,0.0,0.0>"),
            # A point in another cell, or off the mosaic, is clamped to the named view.
            ("<c1,CAM_FRONT,[10, 990]>", "<c1,CAM_FRONT,0.0,900.0>"),
            ("<c1,CAM_BACK,[1200, -3]>", "<c1,CAM_BACK,1600.0,0.0>"),
            ("<c,CAM_FRONT,[500, 250]>", "<c,CAM_FRONT,800.0,450.0>"),
            ("<c1,CAM_TOP,[500, 250]>", "<c1,CAM_TOP,[500, 250]>"),
            ("<c1,CAM_FRONT,[500, 250]", "<c1,CAM_FRONT,[500, 250]"),
        ],
    )
    def test_tags(self, text: str, expected: str) -> None:
        assert to_original(text) == expected

    @pytest.mark.parametrize(
        "box",
        [
            "<box>[[1, 2, 3, 4]]</box>",
            " <box>[[1, 2, 3, 4]]</box>",
            "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>",
            "<box>[[1, 2, 3, 4]]</box><box>[[5, 6, 7, 8]]</box>",
            "<box></box>",
        ],
    )
    def test_a_box_after_a_tag_is_removed(self, box: str) -> None:
        text = f"See <c1,CAM_FRONT,[500, 250]>{box}, and <c2,CAM_BACK,[500, 750]>{box}."
        expected = "See <c1,CAM_FRONT,800.0,450.0>, and <c2,CAM_BACK,800.0,450.0>."
        assert to_original(text) == expected

    def test_a_box_cut_off_at_the_end_is_removed(self) -> None:
        assert to_original("<c1,CAM_FRONT,[500, 250]><box>[[1, 2") == "<c1,CAM_FRONT,800.0,450.0>"

    def test_a_box_elsewhere_stays(self) -> None:
        text = "<ref>car</ref><box>[[1, 2, 3, 4]]</box>"
        assert to_original(text) == text

    def test_traffic_lists_get_two_decimals(self) -> None:
        text = "[(traffic light, green, 474, 0, 484, 61), (sign,stop,10,10,1000,1000), (light"
        assert to_original(text) == (
            "[(traffic light, green, 675.20, 0.00, 723.20, 109.80), "
            "(sign,stop, 0.00, 18.00, 1600.00, 900.00), (light"
        )

    def test_the_prompt_is_no_tag(self) -> None:
        from adapt.converters.drivelm import PROMPT

        assert to_original(PROMPT) == tags_to_mosaic(PROMPT) == PROMPT


@settings(deadline=None)
@given(cameras, tenths, tenths)
def test_pixels_survive_within_half_a_bin(camera: str, x_px: float, y_px: float) -> None:
    back = object_key(to_original(tags_to_mosaic(f"<c1,{camera},{x_px},{y_px}>")))
    assert back is not None
    identifier, found_camera, x_back, y_back = back
    x_view, y_view = min(max(x_px, 0), 1600), min(max(y_px, 0), 900)
    assert (identifier, found_camera) == ("c1", camera)
    assert abs(x_back - x_view) <= HALF_BIN_X_PX + 0.05 + 1e-9
    assert abs(y_back - y_view) <= HALF_BIN_Y_PX + 0.05 + 1e-9


@settings(deadline=None)
@given(cameras, st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_the_way_back_never_leaves_the_view(camera: str, x: float, y: float) -> None:
    text = to_original(f"<c1,{camera},[{x:f}, {y:f}]>")
    assert re.fullmatch(rf"<c1,{camera},\d+\.\d,\d+\.\d>", text)
    _, _, x_px, y_px = object_key(text)  # type: ignore[misc]
    assert 0 <= x_px <= 1600
    assert 0 <= y_px <= 900


@settings(deadline=None)
@given(st.lists(st.tuples(tenths, tenths, tenths, tenths), min_size=1, max_size=4))
def test_lists_survive_within_half_a_bin(
    boxes: list[tuple[float, float, float, float]],
) -> None:
    elements = [f"(traffic light, red, {', '.join(map(str, box))})" for box in boxes]
    inside = [
        box
        for x1, y1, x2, y2 in boxes
        if x1 < x2 and y1 < y2
        for box in [[min(max(x1, 0), 1600), min(max(y1, 0), 900)]]
        for box in [[*box, min(max(x2, 0), 1600), min(max(y2, 0), 900)]]
        if box[0] < box[2] and box[1] < box[3]
    ]
    text = f"[{', '.join(elements)}]"
    if not inside:
        with pytest.raises(TextError, match="empty-list"):
            lists_to_mosaic(text)
        return
    found, dropped = lists_to_mosaic(text)
    assert len(dropped) == len(boxes) - len(inside)
    numbers = [float(number) for number in re.findall(r"\d+\.\d\d", to_original(found))]
    assert len(numbers) == 4 * len(inside)
    for index, number in enumerate(numbers):
        half_bin = HALF_BIN_Y_PX if index % 2 else HALF_BIN_X_PX
        assert abs(number - inside[index // 4][index % 4]) <= half_bin + 0.005 + 1e-9


pieces = st.one_of(
    st.text("<>[]()c1,. CAM_BOX/", max_size=12),
    st.builds("<c{},{},[{}, {}]>".format, st.integers(0, 20), cameras, tenths, tenths),
    st.builds("<c1,{},{},{}>".format, cameras, tenths, tenths),
    st.builds("<box>[[{}, 2, 3, 4]]</box>".format, st.integers(0, 1000)),
    st.builds("(light, red, {}, {}, 500, 600)".format, st.integers(0, 1000), tenths),
    st.just("<c1,CAM_FRONT,[500, 250]><box>[[1"),
)


@settings(deadline=None)
@given(st.lists(pieces, max_size=6).map("".join))
def test_the_way_back_taken_twice_changes_nothing(text: str) -> None:
    once = to_original(text)
    assert to_original(once) == once


def test_object_keys() -> None:
    assert object_key("< c3,CAM_FRONT ,1043.2, 82>") == ("c3", "CAM_FRONT", 1043.2, 82.0)
    assert object_key("<c3,CAM_FRONT,1043.2>") is None
    assert object_key("car") is None
