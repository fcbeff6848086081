"""The DriveLM challenge's rules: lettered options, and which questions it scores.

    0 accuracy    1 judge    2 language    3 match        the challenge's tags

The pools and phrases are those of the challenge's own scripts (OpenDriveLab/DriveLM,
`challenge/convert_data.py` and `challenge/extract_data.py`). They draw with an unseeded random
number generator; here every draw depends on the seed and the record's id alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

FAMILIES = ("perception", "prediction", "planning", "behavior")
"""The four lists of questions, in the order that numbers them."""

OPTIONS_PHRASE = "Please select the correct answer from the following options:"
MOVING_STATUS_PHRASE = "What is the moving status of object"
LETTERS = "ABCD"

MOVING_STATUS_POOL = (
    "Going ahead.",
    "Turn right.",
    "Turn left.",
    "Stopped.",
    "Back up.",
    "Reverse parking.",
    "Drive backward.",
)
BEHAVIOUR_POOL = (
    "The ego vehicle is slightly steering to the left. The ego vehicle is driving very fast.",
    "The ego vehicle is steering to the left. The ego vehicle is driving with normal speed.",
    "The ego vehicle is steering to the left. The ego vehicle is driving fast.",
    "The ego vehicle is slightly steering to the right. The ego vehicle is driving fast.",
    "The ego vehicle is going straight. The ego vehicle is driving slowly.",
    "The ego vehicle is going straight. The ego vehicle is driving with normal speed.",
    "The ego vehicle is slightly steering to the left. The ego vehicle is driving with normal "
    "speed.",
    "The ego vehicle is slightly steering to the left. The ego vehicle is driving slowly.",
    "The ego vehicle is slightly steering to the right. The ego vehicle is driving slowly.",
    "The ego vehicle is slightly steering to the right. The ego vehicle is driving very fast.",
    "The ego vehicle is steering to the right. The ego vehicle is driving fast.",
    "The ego vehicle is steering to the right. The ego vehicle is driving very fast.",
    "The ego vehicle is slightly steering to the left. The ego vehicle is driving fast.",
    "The ego vehicle is steering to the left. The ego vehicle is driving very fast.",
    "The ego vehicle is going straight. The ego vehicle is not moving.",
    "The ego vehicle is slightly steering to the right. The ego vehicle is driving with normal "
    "speed.",
    "The ego vehicle is steering to the right. The ego vehicle is driving slowly.",
    "The ego vehicle is steering to the right. The ego vehicle is driving with normal speed.",
    "The ego vehicle is going straight. The ego vehicle is driving very fast.",
    "The ego vehicle is going straight. The ego vehicle is driving fast.",
    "The ego vehicle is steering to the left. The ego vehicle is driving slowly.",
)

_PLANNING_PHRASES = (
    "what actions could the ego vehicle take",
    "lead to a collision",
    "safe actions",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a frame.

    Args:
        number: Position over all families of the frame, from 0.
        family: One of FAMILIES.
        text: As in the raw file.
        answer: As in the raw file; empty when there is none.
    """

    number: int
    family: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Lettered:
    """A question with four options, and the letter of the right one."""

    question: str
    answer: str
    options: tuple[str, ...]


def option_pool(question: Question) -> tuple[str, ...]:
    """Return the answers that the challenge letters this question with; none for most."""
    if OPTIONS_PHRASE in question.text:
        return ()
    if question.family == "behavior":
        return BEHAVIOUR_POOL
    if question.family == "perception" and _has(question.text, MOVING_STATUS_PHRASE):
        return MOVING_STATUS_POOL
    return ()


def letter_question(question: Question, *, seed: int, record_id: str) -> Lettered | None:
    """Return the question with four options, or None when its answer is not in the pool.

    Args:
        question: One that has an `option_pool`.
        seed: With `record_id` decides which three others are drawn, and the order of the four.
        record_id: The record's id.
    """
    pool = option_pool(question)
    answer = question.answer.strip()
    if answer not in pool:
        return None
    others = [option for option in pool if option != answer]
    drawn = _shuffled(others, f"{seed}/{record_id}/draw")[: len(LETTERS) - 1]
    options = _shuffled([*drawn, answer], f"{seed}/{record_id}/order")
    listed = " ".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)
    )
    return Lettered(
        question=f"{question.text} {OPTIONS_PHRASE} {listed}",
        answer=LETTERS[options.index(answer)],
        options=tuple(options),
    )


def challenge_tags(
    questions: Sequence[Question], objects: Sequence[tuple[str, str]]
) -> dict[int, list[int]]:
    """Return the tags of the questions that the challenge would score, by question number.

    In each frame the first that fits is taken for every rule but the last; where two rules take
    the same question, the later one decides, as in the challenge's script.

    Args:
        questions: All of a frame.
        objects: (tag, visual description) of the frame's objects, as in the raw file.
    """
    descriptions = [description.split(".")[0] for _, description in objects]
    points = [tag for tag, _ in objects]
    tags: dict[int, list[int]] = {}

    def take_first(family: str, tag: int, fits: Callable[[Question], bool]) -> None:
        for question in questions:
            if question.family == family and fits(question):
                tags[question.number] = [tag]
                return

    take_first("perception", 2, lambda q: all(_has(q.answer, each) for each in descriptions))
    take_first("perception", 0, lambda q: _has(q.text, MOVING_STATUS_PHRASE))
    take_first("prediction", 3, lambda q: all(_has(q.answer, point) for point in points))
    take_first("prediction", 0, lambda q: _has(q.answer, "yes") or _has(q.answer, "no"))
    for phrase in _PLANNING_PHRASES:
        take_first("planning", 1, partial(_asks, phrase))
    tags |= {question.number: [0] for question in questions if question.family == "behavior"}
    return tags


def _asks(phrase: str, question: Question) -> bool:
    return _has(question.text, phrase)


def _has(text: str, part: str) -> bool:
    return part.lower() in text.lower()


def _shuffled(values: Sequence[str], key: str) -> list[str]:
    """Return the values in an order that depends on `key` alone."""

    def rank(value: str) -> bytes:
        return hashlib.sha256(f"{key}/{value}".encode()).digest()

    return sorted(values, key=rank)
