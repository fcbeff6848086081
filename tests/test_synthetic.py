"""The demo's world: same bytes for a seed, boxes on what was drawn."""

import json
from pathlib import Path

from folders import tree
from PIL import Image

from adapt.synthetic import COLOURS, TRAIN_FILE, TRUTH_FILE, VAL_FILE, write_driving, write_general


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_driving(tmp_path / name, train_frames=2, val_frames=1, seed=seed)
        write_general(tmp_path / name / "general", rows=2, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_boxes_hold_the_colour_that_their_object_is_said_to_have(tmp_path: Path) -> None:
    write_driving(tmp_path, train_frames=6, val_frames=1, seed=0)
    scenes = json.loads((tmp_path / TRAIN_FILE).read_text())
    seen = 0
    for scene in scenes.values():
        for frame in scene["key_frames"].values():
            for tag, info in frame["key_object_infos"].items():
                camera = tag.split(",")[1]
                x1, y1, x2, y2 = info["2d_bbox"]
                colour = info["Visual_description"].split()[0].lower()
                if colour not in COLOURS:
                    continue
                with Image.open(tmp_path / frame["image_paths"][camera][3:]) as view:
                    found = view.getpixel(((x1 + x2) / 2, (y1 + y2) / 2))
                assert all(abs(a - b) < 12 for a, b in zip(found, COLOURS[colour], strict=True))
                seen += 1
    assert seen >= 12


def test_val_questions_are_those_of_the_truth_without_answers(tmp_path: Path) -> None:
    write_driving(tmp_path, train_frames=1, val_frames=2, seed=0)
    asked = json.loads((tmp_path / VAL_FILE).read_text())
    truth = json.loads((tmp_path / TRUTH_FILE).read_text())

    def items(scenes: dict) -> list:  # type: ignore[type-arg]
        return [
            item
            for scene in scenes.values()
            for frame in scene["key_frames"].values()
            for group in frame["QA"].values()
            for item in group
        ]

    assert [item["Q"] for item in items(asked)] == [item["Q"] for item in items(truth)]
    assert {item["A"] for item in items(asked)} == {""}
    assert all(item["A"] for item in items(truth))
