"""Read the truth of the DriveLM challenge: which questions are scored, and their answers.

official  SCENE -> "key_frames" -> FRAME -> "QA" -> four lists of {"Q", "A", "tag"}; ids are
          SCENE_FRAME_N, N counting over perception + prediction + planning + behavior
ours      records of `adapt convert drivelm`; those whose `extra` has a "tag" are scored, against
          the raw texts under "question" and "answer" there (lettered ones against their letter).
          The first question of a frame decides which others count: where they were picked out of
          a whole annotation, they are put in the order of the challenge's test file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from adapt.converters.drivelm import MOVING_STATUS_PHRASE, OPTIONS_PHRASE, TWIN_SUFFIX
from adapt.errors import RecordError, SourceError
from adapt.eval.drivelm_score import ACCURACY, LANGUAGE, MATCH, PART_OF_TAG, Question
from adapt.jsonl import read_bytes, read_records, require_file
from adapt.records import RecordLine

HEAD_BYTES = 1 << 16
"""How much of a file is looked at to tell its layout."""

_IMAGES = re.compile(r"^(?:\s*<image>)+")


@dataclass(frozen=True, slots=True)
class Truth:
    """What to score.

    Args:
        questions: In the order of the challenge.
        unscored: Ids of the other questions in the file.
        is_official: Whether its texts are in camera pixels only.
    """

    questions: list[Question]
    unscored: frozenset[str]
    is_official: bool


_Value = TypeVar("_Value")


class _Entry(msgspec.Struct):
    Q: str
    A: str
    tag: list[int] | None = None


class _Lists(msgspec.Struct):
    perception: list[_Entry]
    prediction: list[_Entry]
    planning: list[_Entry]
    behavior: list[_Entry]


class _Frame(msgspec.Struct):
    QA: _Lists


class _Scene(msgspec.Struct):
    key_frames: dict[str, _Frame]


class _Extra(msgspec.Struct):
    tag: list[int] | None = None
    question: str | None = None
    answer: str | None = None


def read_truth(path: Path) -> Truth:
    """Return the questions that the challenge scores, in the file's order.

    Raises:
        SourceError: The file is missing, empty or of neither layout.
        RecordError: A question to score has no answer, a tag is unknown, or nothing has a tag.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b'"key_frames"' in head:
        truth = _official_truth(path)
    elif b'"conversations"' in head:
        truth = _records_truth(path)
    else:
        raise SourceError(
            f"{path}: is neither DriveLM's annotation (scenes with key_frames) nor records of "
            f"adapt convert drivelm"
        )
    if not truth.questions:
        raise RecordError(
            f"{path}: none of {len(truth.unscored)} questions has a tag, which says how it is "
            f'scored; expected "tag": [0] to [3] as in the challenge\'s test file, or records of '
            f"a split with answers"
        )
    return truth


def short_id(identifier: str) -> str:
    """Return the id without dataset and split.

    >>> short_id("drivelm/val/scene_frame_3"), short_id("scene_frame_3")
    ('scene_frame_3', 'scene_frame_3')
    """
    return identifier.split("/", 2)[-1]


def decode_file(path: Path, kind: type[_Value], what: str) -> _Value:
    """Read a whole JSON file of a known shape; keys that are not asked for cost no memory."""
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"{path}: not {what} in DriveLM's layout: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: not valid JSON ({error}); the file may be cut off: fetch it again"
        ) from error


def _official_truth(path: Path) -> Truth:
    scenes = decode_file(path, dict[str, _Scene], "an annotation")
    questions, unscored = [], []
    for scene_id, scene in scenes.items():
        for frame_id, content in scene.key_frames.items():
            lists, frame = content.QA, f"{scene_id}_{frame_id}"
            entries = (*lists.perception, *lists.prediction, *lists.planning, *lists.behavior)
            for index, entry in enumerate(entries):
                identifier = f"{frame}_{index}"
                if entry.tag is None:
                    unscored.append(identifier)
                    continue
                tags = _read_tags(f"{path}: {identifier}", entry.tag, entry.A)
                question = Question(
                    identifier, frame, entry.Q, entry.A, tags, asked=(without_images(entry.Q),)
                )
                questions.append(question)
    return Truth(questions, frozenset(unscored), is_official=True)


def _records_truth(path: Path) -> Truth:
    questions: dict[str, Question] = {}
    unscored = set()
    for number, record in read_records(path):
        key, place = short_id(record.id), f"{path}:{number}: {record.id}"
        extra = _read_extra(place, record.extra)
        if key in questions or key in unscored:
            raise RecordError(f"{place}: this id stands in the file before; expected it once")
        if extra.tag:
            questions[key] = _question_of_record(place, record, extra)
        else:
            unscored.add(key)
    twins = {key.removesuffix(TWIN_SUFFIX) for key in questions if key.endswith(TWIN_SUFFIX)}
    unscored |= twins & questions.keys()
    kept = [question for key, question in questions.items() if key not in twins]
    picked_out = {_frame_of(key) for key in unscored}
    return Truth(_in_challenge_order(kept, picked_out), frozenset(unscored), is_official=False)


def _in_challenge_order(questions: list[Question], frames_to_sort: set[str]) -> list[Question]:
    """Return the questions frame by frame, some frames' in the order of challenge/extract_data.py.

    That is: important objects (tag 2), moving status, all objects in turn (tag 3), then the rest
    as in the file: a yes or no, planning, behaviour.
    """
    frames: dict[str, list[Question]] = {}
    for question in questions:
        frames.setdefault(question.frame, []).append(question)
    for name in frames_to_sort & frames.keys():
        frames[name].sort(key=_challenge_rank)
    return [question for frame in frames.values() for question in frame]


def _challenge_rank(question: Question) -> int:
    if LANGUAGE in question.tags:
        return 0
    if ACCURACY in question.tags and MOVING_STATUS_PHRASE.lower() in question.text.lower():
        return 1
    return 2 if MATCH in question.tags else 3


def _question_of_record(place: str, record: RecordLine, extra: _Extra) -> Question:
    """Return the question of a record: its raw texts, with letters where the record has them."""
    if extra.question is None or extra.answer is None:
        raise RecordError(
            f'{place}: extra has a "tag" but not "question" and "answer", the raw texts; convert '
            f"it again"
        )
    asked = without_images(record.conversations[-2].value)
    text, truth = extra.question, extra.answer
    if OPTIONS_PHRASE in asked and OPTIONS_PHRASE not in text:
        letters = asked[asked.index(OPTIONS_PHRASE) :].split("\n", 1)[0]
        text, truth = f"{text} {letters}", record.conversations[-1].value
    key = short_id(record.id)
    return Question(
        id=key,
        frame=_frame_of(key),
        text=text,
        truth=truth,
        tags=_read_tags(place, extra.tag or [], truth),
        asked=(asked, text),
    )


def _frame_of(key: str) -> str:
    return key.rsplit("_", 1)[0]


def _read_extra(place: str, extra: str) -> _Extra:
    if not extra:
        return _Extra()
    try:
        return msgspec.json.decode(extra, type=_Extra)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"{place}: extra is not what adapt convert drivelm writes: {error}; convert it again"
        ) from error


def _read_tags(place: str, tags: list[int], truth: str) -> frozenset[int]:
    unknown = sorted(set(tags) - PART_OF_TAG.keys())
    if unknown:
        known = ", ".join(f"{tag} {part}" for tag, part in PART_OF_TAG.items())
        raise RecordError(f"{place}: tag {unknown[0]} is unknown (known: {known})")
    if tags and not truth:
        raise RecordError(
            f"{place}: has a tag but no true answer; this is a questions-only file, which "
            f"nothing can be scored against: take a split with answers"
        )
    return frozenset(tags)


def without_images(question: str) -> str:
    """Return a question without the `<image>` placeholders before it.

    >>> without_images("<image>\\nIs it red?")
    'Is it red?'
    """
    return _IMAGES.sub("", question).strip()
