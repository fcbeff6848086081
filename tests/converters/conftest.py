"""Raw DriveLM files, small enough to read, and the ways to convert them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivelm_texts import C1, C2, CAMERAS, IMPORTANT, TRAFFIC
from PIL import Image

from adapt.converters import drivelm
from adapt.records import NotInSplit, Record, Result, Skip

Json = dict[str, Any]


def qa(question: str, answer: object) -> Json:
    return {"Q": question, "A": answer, "C": None, "con_up": None, "cluster": None}


def make_frame(token: str = "f1") -> Json:
    return {
        "key_object_infos": {
            C1: {
                "Category": "Vehicle",
                "Status": "Moving",
                "Visual_description": "Brown SUV.",
                "2d_bbox": [966.6, 403.3, 1224.1, 591.7],
            },
            C2: {
                "Category": "Traffic element",
                "Status": None,
                "Visual_description": "Green light.",
                "2d_bbox": [676.4, -3.0, 1452.6, 171.5],
            },
        },
        "QA": {
            "perception": [
                qa(IMPORTANT, f"There is a brown SUV and a green light: {C1} and {C2}."),
                qa(f"What is the moving status of object {C1}?", "Turn left."),
                qa(
                    TRAFFIC,
                    "There are two: [(traffic light, green, 674.86, 0.14, 723.33, 109.18), "
                    "(traffic light, red, 9.0, 9.0, 9.0, 12.0)].",
                ),
            ],
            "prediction": [qa("What object first?", f"Firstly {C2}, then {C1}.")],
            "planning": [qa("In this scenario, what are safe actions to take?", "Brake.")],
            "behavior": [
                qa(
                    "Predict the behavior of the ego vehicle.",
                    "The ego vehicle is going straight. The ego vehicle is driving fast.",
                )
            ],
        },
        "image_paths": {
            camera: f"../nuscenes/samples/{camera}/{token}.jpg" for camera in CAMERAS[::-1]
        },
    }


def make_annotations(*tokens: str) -> Json:
    return {
        "s1": {
            "scene_description": "A road.",
            "key_frames": {token: make_frame(token) for token in tokens},
        }
    }


def write_files(raw: Path, content: object, name: str = "v1_1_train_nus.json") -> Path:
    """Write annotations, and small views for two frames, as the official layout has them."""
    raw.mkdir(parents=True, exist_ok=True)
    (raw / name).write_text(json.dumps(content, indent=1))
    for number, camera in enumerate(CAMERAS):
        folder = raw / "nuscenes" / "samples" / camera
        folder.mkdir(parents=True, exist_ok=True)
        for token in ("f1", "f2"):
            Image.new("RGB", (160, 90), (40 * number, 100, 100)).save(folder / f"{token}.jpg")
    return raw


def convert_parts(raw: Path, split: str = "train", **options: Any) -> list[Result]:
    """Convert part by part, as the runner does, checking that the units add up in each."""
    results: list[Result] = []
    for part in drivelm.parts(raw, split, **options):
        found = list(drivelm.convert_part(raw, split, part, **options))
        used = {unit for each in found if isinstance(each, Record) for unit in each.used_units()}
        lost = sum(each.units for each in found if isinstance(each, Skip | NotInSplit))
        assert len(used) + lost == part.units, part.name
        results += found
    return results


def only_records(raw: Path, split: str = "train", **options: Any) -> list[Record]:
    results = convert_parts(raw, split, **options)
    assert [each for each in results if not isinstance(each, Record)] == []
    return [each for each in results if isinstance(each, Record)]


@pytest.fixture
def frame() -> Callable[..., Json]:
    """Make the annotations of a frame."""
    return make_frame


@pytest.fixture
def annotations() -> Callable[..., Json]:
    """Make annotations of frames with the tokens given, in one scene."""
    return make_annotations


@pytest.fixture
def write_raw() -> Callable[..., Path]:
    """Write a raw folder."""
    return write_files


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder of two frames, f1 and f2."""
    return write_files(tmp_path / "raw", make_annotations("f1", "f2"))


@pytest.fixture
def converted() -> Callable[..., list[Result]]:
    """Convert a raw folder, part by part."""
    return convert_parts


@pytest.fixture
def records() -> Callable[..., list[Record]]:
    """Convert a raw folder of which nothing may be lost."""
    return only_records
