"""A small seeded world in DriveLM's raw layout and a general set beside it, for the demo.

Every frame has six rendered 1600x900 views. What is asked can be seen in the pictures only:

    lead vehicle, CAM_FRONT     its colour says how it moves (MOVING)
    lamp over the road          its colour says what the ego vehicle does (BEHAVIOUR)
    object behind, CAM_BACK     a striped barrier or a plain car
    one object at a side        a coloured vehicle in a view chosen by chance

Colours, places and sizes are drawn independently of each other and of the frame's number.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from adapt.coords import NUSCENES
from adapt.jsonl import write_bytes, write_json

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
}
MOVING = {
    "red": "Stopped.",
    "green": "Going ahead.",
    "blue": "Turn left.",
    "yellow": "Turn right.",
}
BEHAVIOUR = {
    "red": "The ego vehicle is going straight. The ego vehicle is not moving.",
    "green": "The ego vehicle is going straight. The ego vehicle is driving fast.",
    "blue": "The ego vehicle is steering to the left. The ego vehicle is driving slowly.",
    "yellow": "The ego vehicle is steering to the right. The ego vehicle is driving slowly.",
}
SIDES = ("CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
PLACES = {
    "CAM_FRONT": "front",
    "CAM_BACK": "back",
    "CAM_FRONT_LEFT": "front left",
    "CAM_FRONT_RIGHT": "front right",
    "CAM_BACK_LEFT": "back left",
    "CAM_BACK_RIGHT": "back right",
}
TRAIN_FILE = "v1_1_train_nus.json"
VAL_FILE = "v1_1_val_nus_q_only.json"
TRUTH_FILE = "val_with_answers.json"
JPEG_QUALITY = 85
FULL_EVERY = 4
"""One training frame in so many asks every question, the others only the four short ones."""

BoxPx = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """Something drawn in a view.

    Args:
        camera: The view it stands in.
        box_px: x1, y1, x2, y2 in pixels of the view.
        colour: Key of COLOURS; empty for a barrier.
    """

    camera: str
    box_px: BoxPx
    colour: str

    def tag(self, number: int) -> str:
        """Return the c tag of the thing, its point the centre of the box."""
        x1, y1, x2, y2 = self.box_px
        return f"<c{number},{self.camera},{(x1 + x2) / 2:.1f},{(y1 + y2) / 2:.1f}>"

    def name(self) -> str:
        """Return how the thing looks in words."""
        return f"{self.colour} vehicle" if self.colour else "road barrier"


@dataclass(frozen=True, slots=True)
class Scene:
    """What can be seen in one frame."""

    lead: Thing
    behind: Thing
    side: Thing
    lamp: Thing

    def things(self) -> tuple[Thing, Thing, Thing]:
        """Return the objects that questions ask about, c1 to c3."""
        return self.lead, self.behind, self.side


def write_driving(folder: Path, *, train_frames: int, val_frames: int, seed: int) -> None:
    """Write raw DriveLM files: train with answers, val without, and val's answers apart.

    Args:
        folder: Becomes the raw folder of `adapt convert drivelm`.
        train_frames: Frames with answers.
        val_frames: Frames never seen in training.
        seed: Of everything that is drawn by chance.
    """
    chance = random.Random(f"driving {seed}")
    train = _write_frames(folder, "train", train_frames, chance)
    val = _write_frames(folder, "val", val_frames, chance)
    write_json(folder / TRAIN_FILE, train)
    write_json(folder / TRUTH_FILE, val)
    write_json(folder / VAL_FILE, _without_answers(val))


def write_general(folder: Path, *, rows: int, seed: int) -> None:
    """Write conversations about single pictures, in LLaVA's layout.

    Args:
        folder: Becomes the raw folder of `adapt convert llava`.
        rows: Conversations; one picture each.
        seed: Of everything that is drawn by chance.
    """
    chance = random.Random(f"general {seed}")
    written = []
    for index in range(rows):
        colour = chance.choice(list(COLOURS))
        image = Image.new("RGB", (448, 448), _grey(chance))
        pen = ImageDraw.Draw(image)
        size = chance.randint(120, 300)
        left, top = chance.randint(20, 428 - size), chance.randint(20, 428 - size)
        pen.ellipse((left, top, left + size, top + size), fill=COLOURS[colour])
        name = f"images/{index:05d}.jpg"
        write_bytes(folder / name, _jpeg(image))
        written.append(
            {
                "id": f"circle-{index}",
                "image": name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colour is the circle?"},
                    {"from": "gpt", "value": f"The circle is {colour}."},
                ],
            }
        )
    write_json(folder / "circles.json", written)


def _write_frames(folder: Path, kind: str, count: int, chance: random.Random) -> dict[str, Any]:
    scenes: dict[str, Any] = {}
    for index in range(count):
        scene = _draw_scene(chance)
        token = f"{kind}{index:04d}"
        paths = {}
        for row in NUSCENES.cameras:
            for camera in row:
                name = f"nuscenes/samples/{camera}/{token}__{camera}.jpg"
                write_bytes(folder / name, _jpeg(_render(scene, camera, chance)))
                paths[camera] = f"../{name}"
        scenes.setdefault(
            f"scene{kind}{index // 10:03d}",
            {
                "scene_description": "A road drawn by the demo.",
                "key_frames": {},
            },
        )["key_frames"][token] = {
            "key_object_infos": _object_infos(scene),
            "QA": _questions(scene, every=kind == "val" or index % FULL_EVERY == 0),
            "image_paths": paths,
        }
    return scenes


def _draw_scene(chance: random.Random) -> Scene:
    colours = list(COLOURS)
    return Scene(
        lead=Thing("CAM_FRONT", _place(chance, 580, 460, 480, 340), chance.choice(colours)),
        behind=Thing(
            "CAM_BACK",
            _place(chance, 560, 400, 460, 320),
            chance.choice(("", chance.choice(colours))),
        ),
        side=Thing(
            chance.choice(SIDES), _place(chance, 560, 400, 460, 320), chance.choice(colours)
        ),
        lamp=Thing("CAM_FRONT", _place(chance, 500, 30, 600, 400), chance.choice(colours)),
    )


def _place(chance: random.Random, left: float, top: float, width: float, height: float) -> BoxPx:
    """Return a box near the place given, moved and scaled a little."""
    scale = chance.uniform(0.85, 1.15)
    x1 = round(left + chance.uniform(-80, 80), 1)
    y1 = round(top + chance.uniform(-30, 30), 1)
    return x1, y1, round(x1 + width * scale, 1), round(y1 + height * scale, 1)


def _render(scene: Scene, camera: str, chance: random.Random) -> Image.Image:
    width, height = NUSCENES.view_width, NUSCENES.view_height
    image = Image.new("RGB", (width, height), _grey(chance, 150, 200))
    pen = ImageDraw.Draw(image)
    horizon = height // 2 + chance.randint(-40, 40)
    pen.rectangle((0, horizon, width, height), fill=_grey(chance, 80, 120))
    for _ in range(4):
        x, tall = chance.randint(0, width - 100), chance.randint(60, 220)
        pen.rectangle((x, horizon - tall, x + 100, horizon), fill=_grey(chance, 110, 170))
    for thing in scene.things():
        if thing.camera == camera:
            _draw_thing(pen, thing)
    if camera == scene.lamp.camera:
        pen.ellipse(scene.lamp.box_px, fill=COLOURS[scene.lamp.colour], outline="black", width=8)
    return image


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    x1, y1, x2, y2 = thing.box_px
    if thing.colour:
        pen.rectangle(thing.box_px, fill=COLOURS[thing.colour], outline="black", width=8)
        return
    step = (x2 - x1) / 6
    for stripe in range(6):
        fill = "white" if stripe % 2 else "black"
        pen.rectangle((x1 + stripe * step, y1, x1 + (stripe + 1) * step, y2), fill=fill)


def _object_infos(scene: Scene) -> dict[str, Any]:
    return {
        thing.tag(number): {
            "Category": "Vehicle" if thing.colour else "Barrier",
            "Status": "Moving" if thing.colour else None,
            "Visual_description": f"{thing.name().capitalize()}.",
            "2d_bbox": list(thing.box_px),
        }
        for number, thing in enumerate(scene.things(), start=1)
    }


def _questions(scene: Scene, *, every: bool) -> dict[str, list[dict[str, Any]]]:
    """Return a frame's questions by family; `every`: the long ones too."""
    lead, behind, side = (thing.tag(n) for n, thing in enumerate(scene.things(), start=1))
    barrier = "No." if scene.behind.colour else "Yes."
    short = {
        "perception": _items(
            (f"What is the moving status of object {lead}?", MOVING[scene.lead.colour], 0),
            (f"What is the moving status of object {side}?", MOVING[scene.side.colour], None),
        ),
        "prediction": _items((f"Is {behind} a traffic sign or a road barrier?", barrier, 0)),
        "planning": _items(),
        "behavior": _items(
            ("Predict the behavior of the ego vehicle.", BEHAVIOUR[scene.lamp.colour], 0)
        ),
    }
    if not every:
        return short
    important, elements, noticed, action = _long_questions(scene)
    return {
        "perception": [important, *short["perception"], elements],
        "prediction": [noticed, *short["prediction"]],
        "planning": [action],
        "behavior": short["behavior"],
    }


def _long_questions(scene: Scene) -> list[dict[str, Any]]:
    """Return important objects, traffic elements, objects to notice and possible actions."""
    lead, behind, side = (thing.tag(n) for n, thing in enumerate(scene.things(), start=1))
    x1, y1, x2, y2 = scene.lamp.box_px
    listed = [
        f"a {thing.name()} to the {PLACES[thing.camera]} of the ego vehicle"
        for thing in scene.things()
    ]
    stop = scene.lead.colour == "red"
    return _items(
        (
            "What are the important objects in the current scene? Those objects will be "
            "considered for the future reasoning and driving decision.",
            f"There is {listed[0]}, {listed[1]}, and {listed[2]}. "
            f"The IDs of these objects are {lead}, {behind}, and {side}.",
            2,
        ),
        (
            "Identify all the traffic elements in the front view, categorize them, determine "
            "their status, and predict the bounding box around each one. The output should be "
            "a list formatted as (c, s, x1, y1, x2, y2), where c represents the category, s "
            "denotes the status, and x1, y1, x2, y2 are the offsets of the top-left and "
            "bottom-right corners of the box relative to the center point.",
            "There is one traffic element in the front view. The information of this traffic "
            f"element is [(traffic light, {scene.lamp.colour}, "
            f"{x1:.2f}, {y1:.2f}, {x2:.2f}, {y2:.2f})].",
            None,
        ),
        (
            "What object should the ego vehicle notice first when the ego vehicle is getting "
            "to the next possible location?",
            f"Firstly notice that {lead}. Secondly notice that {behind}. "
            f"Thirdly notice that {side}.",
            3,
        ),
        (
            f"What actions could the ego vehicle take based on {lead}? Why take this action "
            "and what's the probability?",
            "The action is to brake, high." if stop else "The action is to keep going, high.",
            1,
        ),
    )


def _items(*rows: tuple[str, str, int | None]) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(("C", "con_up", "con_down", "cluster", "layer"))
    return [
        {"Q": question, "A": answer, **nothing, **({} if tag is None else {"tag": [tag]})}
        for question, answer, tag in rows
    ]


def _without_answers(scenes: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(scenes))
    for scene in copied.values():
        for frame in scene["key_frames"].values():
            for items in frame["QA"].values():
                for item in items:
                    item["A"] = ""
    return copied


def grey_copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy pictures of a dataset, each filled with one grey of the same size."""
    for name in names:
        with Image.open(source / name) as image:
            grey = Image.new("RGB", image.size, (128, 128, 128))
        write_bytes(target / name, _jpeg(grey))


def _grey(chance: random.Random, low: int = 90, high: int = 200) -> tuple[int, int, int]:
    level = chance.randint(low, high)
    return level, level, level


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
