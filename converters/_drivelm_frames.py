"""DriveLM's annotation files: where each key frame stands, and what is in it.

    {scene token: {"key_frames": {frame token: {
        "key_object_infos": {"<c1,CAM_BACK,1088.3,497.5>": {"2d_bbox": [...], ...}},
        "QA": {"perception": [{"Q": ..., "A": ...}], "prediction": [...], ...},
        "image_paths": {"CAM_FRONT": "../nuscenes/samples/CAM_FRONT/....jpg", ...}}}}}

The file (400 MB) is skimmed for the frames' places; a worker then reads its frame alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from adapt.converters._drivelm_files import FrameError, view_files
from adapt.converters._drivelm_rules import FAMILIES, Question
from adapt.converters._drivelm_tags import ObjectKey, object_key
from adapt.converters._raw import MappedJson, Slice
from adapt.errors import SourceError
from adapt.records import IMAGE_PLACEHOLDER, Part, Skip

EXPECTED = '{scene token: {"key_frames": {frame token: {"QA": ..., "image_paths": ...}}}}'

_QUESTION_KEY = rb'"Q"\s*:'
_TOKEN_KEY = re.compile(
    rb'"([^"\\]+)"\s*:\s*\{\s*"(?:scene_description|key_frames|key_object_infos|QA|image_paths)"'
)
# Two tokens of this length and what is put around them fit into a file name.
_SAFE_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame stands.

    Args:
        path: Annotation file.
        piece: The frame's bytes in it.
        scene: Scene token.
        frame: Frame token; empty when the scene could not be read.
        problem: Why its questions could not be counted; empty when they could.
    """

    path: Path
    piece: Slice
    scene: str
    frame: str
    problem: str = ""

    @property
    def name(self) -> str:
        """SCENE_FRAME, the name of the mosaic and the start of the records' ids."""
        return f"{self.scene}_{self.frame}"

    def __str__(self) -> str:
        """Return the place as skips name it."""
        return f"{self.path.name}: scene {self.scene} frame {self.frame or '?'}"

    def question(self, number: int | str) -> str:
        """Return the place of one of its questions."""
        return f"{self} question {number}"


@dataclass(frozen=True, slots=True)
class Frame:
    """What is in a frame.

    Args:
        views: (camera, file) of every camera of the mosaic.
        questions: Those that can be converted.
        skips: Those that cannot.
        tags: Tags of the challenge that stand in the file, by question number.
        objects: (tag, visual description); None when the file has no key_object_infos.
        boxes_px: `2d_bbox` as in the file, by object.
    """

    views: tuple[tuple[str, Path], ...]
    questions: tuple[Question, ...]
    skips: tuple[Skip, ...]
    tags: dict[int, list[int]] = field(default_factory=dict)
    objects: tuple[tuple[str, str], ...] | None = None
    boxes_px: Mapping[ObjectKey, object] = field(default_factory=dict)


class _Scene(msgspec.Struct):
    key_frames: dict[str, msgspec.Raw]


class _Questions(msgspec.Struct):
    families: dict[str, list[msgspec.Raw]] = msgspec.field(name="QA")


def index_frames(path: Path) -> list[Part]:
    """Return one part a frame, in the file's order, with the number of its questions.

    Raises:
        SourceError: The file is missing or malformed, or has a token twice.
    """
    file = MappedJson(path)
    scenes = file.top(dict[str, msgspec.Raw], EXPECTED)
    parts = [part for scene, value in scenes.items() for part in _scene_parts(file, scene, value)]
    names = {part.name for part in parts}
    # A token that stands in the file twice is read once: its other questions would be lost.
    if sum(part.units for part in parts) < file.count(_QUESTION_KEY) or len(names) < len(parts):
        raise SourceError(
            f"{path}: {_repeated(file)} stands in it twice; expected every scene and frame once: "
            f"join the two or take one out"
        )
    return parts


def _scene_parts(file: MappedJson, scene: str, value: msgspec.Raw) -> Iterator[Part]:
    try:
        frames = msgspec.json.decode(value, type=_Scene).key_frames
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield _unread_part(file, scene, "", value, str(error))
        return
    for frame, content in frames.items():
        try:
            families = msgspec.json.decode(content, type=_Questions).families
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield _unread_part(file, scene, frame, content, str(error))
            continue
        place = FramePlace(file.path, file.place(content), scene, frame)
        yield Part(place.name, sum(map(len, families.values())), place)


def _unread_part(
    file: MappedJson, scene: str, frame: str, value: msgspec.Raw, problem: str
) -> Part:
    """Return the part of a frame or scene of another shape: one unit at least is lost."""
    place = FramePlace(file.path, file.place(value), scene, frame, problem)
    return Part(place.name, max(1, file.count(_QUESTION_KEY, value)), place)


def _repeated(file: MappedJson) -> str:
    seen: set[bytes] = set()
    for found in _TOKEN_KEY.finditer(file.data):
        if found[1] in seen:
            return f"{found[1].decode(errors='replace')} (again at byte {found.start()})"
        seen.add(found[1])
    return "a list of questions"


def read_frame(raw: Path, place: FramePlace, *, answers_expected: bool) -> Frame:
    """Read a frame and find its views.

    Args:
        raw: Raw folder, which no view may leave.
        place: From `index_frames`.
        answers_expected: A question without an answer, and a frame without its objects, is an
            error: a training file.

    Raises:
        FrameError: The frame is malformed.
        ImageError: A view is missing, empty or outside the raw folder.
        SourceError: The annotation file can no longer be read.
    """
    if place.problem:
        raise FrameError("malformed-frame", place.problem)
    for token in (place.scene, place.frame):
        if not _SAFE_TOKEN.fullmatch(token):
            raise FrameError("unsafe-token", f"{token!r} cannot be part of a file name")
    try:
        content = msgspec.json.decode(place.piece.read(place.path))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError("malformed-frame", str(error)) from error
    reader = _QuestionReader(place, answers_expected=answers_expected)
    reader.read(content["QA"])
    infos = _mapping(content, "key_object_infos", required=answers_expected)
    views = view_files(raw, place.path, _mapping(content, "image_paths", required=True) or {})
    return Frame(
        views=views,
        questions=tuple(reader.questions),
        skips=tuple(reader.skips),
        tags=reader.tags,
        objects=None if infos is None else tuple(_descriptions(infos)),
        boxes_px=dict(_boxes(infos or {})),
    )


class _QuestionReader:
    """Reads the questions of a frame; numbers them over the families."""

    def __init__(self, place: FramePlace, *, answers_expected: bool) -> None:
        self._place, self._answers_expected = place, answers_expected
        self.questions: list[Question] = []
        self.skips: list[Skip] = []
        self.tags: dict[int, list[int]] = {}

    def read(self, families: Mapping[str, list[Any]]) -> None:
        """Read every list; unknown ones hold questions that would be lost in silence."""
        number = 0
        for family in FAMILIES:
            for item in families.get(family, []):
                self._read_item(number, family, item)
                number += 1
        for family in families.keys() - set(FAMILIES):
            for index in range(len(families[family])):
                self._skip(f"{family}[{index}]", "unknown-family", f"expected {FAMILIES}")

    def _read_item(self, number: int, family: str, item: Any) -> None:
        if not isinstance(item, dict):
            self._skip(number, "bad-question", f'found {item!r}, expected {{"Q": ..., "A": ...}}')
            return
        text, answer = item.get("Q"), item.get("A")
        has_answer = isinstance(answer, str) and bool(answer.strip())
        if not isinstance(text, str) or not text.strip():
            self._skip(number, "no-question", f"Q is {text!r}, expected text")
        elif not isinstance(answer, str | None):
            self._skip(number, "bad-answer", f"A is {answer!r}, expected text")
        elif self._answers_expected and not has_answer:
            self._skip(number, "no-answer", f"A is {answer!r}, expected text")
        elif IMAGE_PLACEHOLDER in text or IMAGE_PLACEHOLDER in (answer or ""):
            self._skip(number, "placeholder-in-text", f"{IMAGE_PLACEHOLDER} stands in the text")
        else:
            known = answer if answer is not None and has_answer else ""
            self.questions.append(Question(number, family, text, known))
            if isinstance(item.get("tag"), list):
                self.tags[number] = item["tag"]

    def _skip(self, number: int | str, reason: str, detail: str) -> None:
        self.skips.append(Skip(self._place.question(number), reason, detail))


def _mapping(content: dict[str, Any], key: str, *, required: bool) -> dict[str, Any] | None:
    if key not in content:
        if required:
            raise FrameError("missing-key", f"the frame has no {key}")
        return None
    if not isinstance(content[key], dict):
        raise FrameError("malformed-frame", f"{key} is {content[key]!r}, expected an object")
    found: dict[str, Any] = content[key]
    return found


def _descriptions(infos: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for tag, info in infos.items():
        description = info.get("Visual_description") if isinstance(info, dict) else None
        yield tag, description if isinstance(description, str) else ""


def _boxes(infos: Mapping[str, Any]) -> Iterator[tuple[ObjectKey, object]]:
    for tag, info in infos.items():
        if key := object_key(tag):
            yield key, info.get("2d_bbox") if isinstance(info, dict) else None
