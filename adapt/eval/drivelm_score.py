"""The DriveLM challenge's rules: which answers count, and what they are worth.

Source:  OpenDriveLab/DriveLM, challenge/evaluation.py (1de72a7)
Tags:    0 accuracy   the answer equals the truth, letter for letter
         1 judge      a language model's rating, 0 to 100
         2 language   BLEU, ROUGE-L, CIDEr
         3 match      coordinates: (mean F1 * 100 + mean judge) / 2; so it asks the judge, too
Points:  every number with a decimal point in a text, two by two; the rest of it is not looked at
Graph:   in each frame the first question always counts. The true points that its answer comes
         within 16 px of (|dx| + |dy|) are the graph; a later question counts only if every point
         in its text is in the graph.
Final:   0.4 judge / 100 + 0.2 language + 0.2 match / 100 + 0.2 accuracy, where
         language = (mean of Bleu_1..4 + ROUGE_L + CIDEr / 10) / 3
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapt.errors import RecordError
from adapt.eval.judge import Judge, Pair
from adapt.eval.metrics import LANGUAGE_KEYS, language_scores

ACCURACY, JUDGE, LANGUAGE, MATCH = 0, 1, 2, 3
PART_OF_TAG = {ACCURACY: "accuracy", JUDGE: "judge", LANGUAGE: "language", MATCH: "match"}
WEIGHTS = {"judge": 0.4, "language": 0.2, "match": 0.2, "accuracy": 0.2}

MATCH_RADIUS_PX = 16.0
EPSILON = 1e-8
"""The scorer's guard against division by zero; an F1 of all points is a little below 1."""

Point = tuple[float, float]

_DECIMAL = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the challenge scores, in the raw camera pixels of the annotation.

    Args:
        id: SCENE_FRAME_N.
        frame: SCENE_FRAME; the questions of a frame stand in the truth's order.
        text: The question as annotated, which the graph rule looks at.
        truth: The true answer.
        tags: What it is scored by.
        asked: Forms in which it may have been put to the model; the first is named in messages.
    """

    id: str
    frame: str
    text: str
    truth: str
    tags: frozenset[int]
    asked: tuple[str, ...]


@dataclass(slots=True)
class Counted:
    """The answers behind each part, and how many the graph rule left out."""

    accuracy: list[Pair] = field(default_factory=list)
    judge: list[Pair] = field(default_factory=list)
    language: list[Pair] = field(default_factory=list)
    match: list[Pair] = field(default_factory=list)
    outside_graph: int = 0

    def of(self, part: str) -> list[Pair]:
        """Return the answers behind the part of that name."""
        pairs: list[Pair] = getattr(self, part)
        return pairs

    def counts(self) -> dict[str, int]:
        """Return the number of answers behind each part."""
        return {part: len(self.of(part)) for part in PART_OF_TAG.values()}


def count_answers(questions: Iterable[Question], answers: Mapping[str, str]) -> Counted:
    """Apply the graph rule and sort the answers that count by what they are scored by.

    Args:
        questions: In the truth's order.
        answers: Answer of every question by its id, in camera pixels.

    Raises:
        RecordError: A truth or question holds half a point.
    """
    counted = Counted()
    graphs: dict[str, frozenset[Point]] = {}
    for question in questions:
        answer = answers[question.id]
        if question.frame not in graphs:
            truth_points = _points(question.truth, f"{question.id}: the true answer")
            graphs[question.frame] = frozenset(match_points(answer, truth_points)[0])
        elif not graphs[question.frame].issuperset(
            _points(question.text, f"{question.id}: the question")
        ):
            counted.outside_graph += 1
            continue
        for tag in question.tags:
            counted.of(PART_OF_TAG[tag]).append(Pair(question.id, answer, question.truth))
    return counted


def match_points(answer: str, truth_points: Sequence[Point]) -> tuple[list[Point], float]:
    """Match the points of an answer to the true ones, each to the nearest that is still free.

    Returns:
        The true points that were matched, and F1 (0 to 1).

    >>> matched, f1 = match_points("<c1,CAM_BACK,10.0,20.5>", [(10.0, 20.0)])
    >>> matched, round(f1, 6)
    ([(10.0, 20.0)], 1.0)
    """
    free = list(truth_points)
    matched = []
    # Half a point at the end of an answer (it was cut off) is left out, as the scorer does.
    predicted = _pairs(_DECIMAL.findall(answer))
    for x, y in predicted:
        distances = [abs(x - true_x) + abs(y - true_y) for true_x, true_y in free]
        # The radius comes first, so that distances that are no number (inf - inf) never win.
        near = [index for index, distance in enumerate(distances) if distance < MATCH_RADIUS_PX]
        if near:
            matched.append(free.pop(min(near, key=distances.__getitem__)))
    precision = len(matched) / (len(predicted) + EPSILON)
    recall = len(matched) / (len(truth_points) + EPSILON)
    return matched, 2 * precision * recall / (precision + recall + EPSILON)


def score_answers(counted: Counted, judge: Judge | None) -> dict[str, Any]:
    """Return the scores: those of a part without answers are None, `missing` says why.

    With a judge: `accuracy`, `judge`, `language`, `match_f1`, `match`, and `final_score` when every
    part has answers. Without one there is neither `judge` nor `match` nor `final_score`.
    Where there is no `final_score` there is `partial_score`: the official weights over the parts
    that are there, divided by their sum, with `match_f1` in place of `match` without a judge; it
    is None when nothing is there (answers for a judge alone, and no judge).

    Raises:
        RecordError: Not one answer counts.
        AdaptError: What the judge or the language scores raise.
    """
    if not any(counted.counts().values()):
        raise RecordError("no question with a tag counts; there is nothing to score")
    scores: dict[str, Any] = {
        "accuracy": _mean([float(pair.answer == pair.truth) for pair in counted.accuracy])
    }
    match_f1 = _mean([_f1(pair) * 100 for pair in counted.match])
    match = match_f1
    if judge is not None:
        ratings = judge.rate([*counted.judge, *counted.match])
        of_match = _mean(ratings[len(counted.judge) :])
        match = None if match_f1 is None or of_match is None else (match_f1 + of_match) / 2
        scores |= {"judge": _mean(ratings[: len(counted.judge)]), "match": match}
    scores |= {"match_f1": match_f1, "language": _language(counted.language)}
    parts = {
        "accuracy": scores["accuracy"],
        "judge": _share(scores.get("judge")),
        "language": language_score(scores["language"]),
        "match": _share(match),
    }
    scores |= _total(parts)
    return scores | {"missing": _missing(counted, judge)}


def _total(parts: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return {"final_score"} of all parts (0 to 1 each), or {"partial_score"} of those there."""
    there = {name: value for name, value in parts.items() if value is not None}
    total = sum(WEIGHTS[name] * value for name, value in there.items())
    if len(there) == len(WEIGHTS):
        return {"final_score": total}
    weight = sum(WEIGHTS[name] for name in there)
    return {"partial_score": total / weight if there else None}


def language_score(scores: Mapping[str, float] | None) -> float | None:
    """Return the one number that the final score takes of the language scores."""
    if scores is None:
        return None
    bleu = sum(scores[key] for key in LANGUAGE_KEYS[:4]) / 4
    return (bleu + scores["ROUGE_L"] + scores["CIDEr"] / 10) / 3


def _missing(counted: Counted, judge: Judge | None) -> dict[str, str]:
    """Return why a part is not there, by its name."""
    tags = {part: tag for tag, part in PART_OF_TAG.items()}
    missing = {
        part: f"no answer with tag {tags[part]} counts"
        for part, count in counted.counts().items()
        if not count
    }
    if judge is None:
        missing["judge"] = "none was asked; give --judge-url or --judge-scores"
        missing.setdefault("match", "half of it is the judge's; match_f1 is the other half")
    return missing


def _language(pairs: Sequence[Pair]) -> dict[str, float] | None:
    if not pairs:
        return None
    return language_scores([pair.answer for pair in pairs], [pair.truth for pair in pairs])


def _f1(pair: Pair) -> float:
    return match_points(pair.answer, _points(pair.truth, f"{pair.id}: the true answer"))[1]


def _points(text: str, place: str) -> list[Point]:
    """Return the points of a text that must hold whole ones."""
    numbers = _DECIMAL.findall(text)
    if len(numbers) % 2:
        raise RecordError(
            f"{place} holds {len(numbers)} numbers with a decimal point, expected an even number "
            f"(x and y of each point): {text!r}"
        )
    return _pairs(numbers)


def _pairs(numbers: Sequence[str]) -> list[Point]:
    values = [float(number) for number in numbers]
    return list(zip(values[::2], values[1::2], strict=False))


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
