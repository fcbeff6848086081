"""Read DriveLM predictions and set them against the truth's questions.

official  [{"id": "SCENE_FRAME_N", "question": ..., "answer": ...}, ...], also as "results" of a
          submission; texts in camera pixels
ours      JSONL of `adapt predict` (schemas/prediction.schema.json), ids
          drivelm/SPLIT/SCENE_FRAME_N; texts with mosaic tags, turned back into camera pixels

Either layout goes with either layout of the truth: ids are compared without `drivelm/SPLIT/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from adapt.errors import RecordError
from adapt.eval.drivelm_score import Question
from adapt.eval.drivelm_truth import HEAD_BYTES, Truth, decode_file, short_id, without_images
from adapt.jsonl import read_lines, require_file

COORDINATE_TOLERANCE_PX = 3.0
"""How far a mosaic coordinate may lie from the raw one: half a bin is 2.4 px of a view's width."""

_DECIMAL = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer as found in a file; `question` is None where the file has none."""

    id: str
    question: str | None
    answer: str

    @property
    def is_ours(self) -> bool:
        """Whether it comes from `adapt predict`, with mosaic tags in its texts."""
        return "/" in self.id


@dataclass(frozen=True, slots=True)
class Paired:
    """Answers in camera pixels by question id, and what was not used or not compared."""

    answers: dict[str, str]
    unscored: int
    unknown: int
    without_question: int


class _Row(msgspec.Struct):
    id: str
    answer: str
    question: str | None = None


class _Submission(msgspec.Struct):
    results: list[_Row]


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Return predictions by their id without `drivelm/SPLIT/`.

    Raises:
        SourceError: The file is missing or empty.
        RecordError: It is no predictions file, or an id stands in it twice.
    """
    require_file(path)
    predictions: dict[str, Prediction] = {}
    for place, row in _rows(path):
        key = short_id(row.id)
        if key in predictions:
            raise RecordError(
                f"{place}: id {row.id!r} stands in the file before; expected one answer a question"
            )
        predictions[key] = Prediction(row.id, row.question, row.answer)
    return predictions


def pair_up(truth: Truth, predictions: Mapping[str, Prediction], path: Path) -> Paired:
    """Return the answer to every question, after comparing the questions.

    Args:
        path: The predictions file, for messages.

    Raises:
        RecordError: A question has no prediction, or the prediction answers another question.
    """
    missing = [question.id for question in truth.questions if question.id not in predictions]
    if missing:
        found = next(iter(predictions.values())).id if predictions else "none"
        raise RecordError(
            f"{path}: {len(missing)} of {len(truth.questions)} questions have no prediction, first "
            f"{', '.join(missing[:3])}; the file's first id is {found}; predict them all (an empty "
            f"answer counts as a wrong one)"
        )
    answers = {}
    for question in truth.questions:
        prediction = predictions[question.id]
        is_asked = prediction.question is None or _is_asked(
            prediction, question, is_official=truth.is_official
        )
        if not is_asked:
            raise RecordError(
                f"{path}: {prediction.id}: answers another question than the truth's: found "
                f"{prediction.question!r}, expected {question.asked[0]!r}; predict from this truth"
            )
        answers[question.id] = _in_camera_pixels(prediction)
    others = predictions.keys() - answers.keys()
    return Paired(
        answers=answers,
        unscored=len(others & truth.unscored),
        unknown=len(others - truth.unscored),
        without_question=sum(predictions[key].question is None for key in answers),
    )


def _rows(path: Path) -> Iterator[tuple[str, _Row]]:
    """Yield (place, row) of any layout of predictions."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).lstrip()
    if head.startswith(b"["):
        rows = decode_file(path, list[_Row], "predictions")
    elif b'"results"' in head:
        rows = decode_file(path, _Submission, "a submission").results
    else:
        yield from _json_lines(path)
        return
    for index, row in enumerate(rows):
        yield f"{path}: $[{index}]", row


def _json_lines(path: Path) -> Iterator[tuple[str, _Row]]:
    decoder = msgspec.json.Decoder(_Row)
    for number, line in read_lines(path):
        try:
            yield f"{path}:{number}", decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}:{number}: not a prediction: {error}") from error


def _in_camera_pixels(prediction: Prediction) -> str:
    """Return the answer as the challenge reads it: `<c1,CAM_BACK,1088.3,497.5>`."""
    if not prediction.is_ours:
        return prediction.answer
    from adapt.converters.drivelm import to_original

    return to_original(prediction.answer)


def _is_asked(prediction: Prediction, question: Question, *, is_official: bool) -> bool:
    """Return whether a prediction answers this question.

    A question of ours against the official truth is compared without our prompt, in camera pixels,
    within what the rounding of mosaic coordinates can move.
    """
    found = without_images(prediction.question or "")
    if found in question.asked:
        return True
    if not (prediction.is_ours and is_official):
        return False
    from adapt.converters.drivelm import PROMPT, to_original

    return _is_alike(to_original(found.removeprefix(PROMPT)), question.text)


def _is_alike(found: str, expected: str) -> bool:
    """Return whether two texts are the same but for small differences of their decimals."""
    if _DECIMAL.split(found.strip()) != _DECIMAL.split(expected.strip()):
        return False
    found_numbers = map(float, _DECIMAL.findall(found))
    expected_numbers = map(float, _DECIMAL.findall(expected))
    return all(
        abs(one - other) <= COORDINATE_TOLERANCE_PX
        for one, other in zip(found_numbers, expected_numbers, strict=True)
    )
