"""DriveLM-nuScenes v1.1: questions about driving scenes seen by six cameras.

Source:  https://github.com/OpenDriveLab/DriveLM, docs/data_prep_nus.md
Licence: text CC BY-NC-SA 4.0, pictures under the nuScenes terms
Raw:     v1_1_train_nus.json, v1_1_val_nus_q_only.json (also up to two folders deep)
         nuscenes/samples/CAM_*/*.jpg, in the raw folder or beside the annotation file
             scene token -> key_frames -> frame token -> key_object_infos, QA, image_paths
             QA -> perception, prediction, planning, behavior -> [{"Q": ..., "A": ...}]
Units:   questions; a frame whose questions cannot be read counts as those that can be seen in it
Parts:   frames; each becomes one 2688x896 mosaic
Prompt:  before every question, in the paper's words (arXiv 2410.16261, section 4.2.1), because
         an answer may hold tags where its question has none
Answers: points and traffic elements in mosaic coordinates; boxes only where the important
         objects are asked for; moving status and behaviour lettered as in the challenge
Extra:   question and answer as the challenge's scorer reads them, in pixels of the views, with
         the options when lettered; its tag when the challenge would score the question
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from adapt.converters._drivelm_files import (
    REPOSITORY,
    FrameError,
    annotation_file,
    present_splits,
)
from adapt.converters._drivelm_frames import Frame, FramePlace, index_frames, read_frame
from adapt.converters._drivelm_rules import MOVING_STATUS_PHRASE as MOVING_STATUS_PHRASE
from adapt.converters._drivelm_rules import OPTIONS_PHRASE as OPTIONS_PHRASE
from adapt.converters._drivelm_rules import (
    Question,
    challenge_tags,
    letter_question,
    option_pool,
)
from adapt.converters._drivelm_tags import (
    ObjectBoxes,
    TextError,
    lists_to_mosaic,
    tags_to_mosaic,
)
from adapt.converters._drivelm_tags import to_original as to_original
from adapt.errors import UsageError
from adapt.images import ImageError
from adapt.mosaic import JPEG_QUALITY, Mosaic
from adapt.records import (
    IMAGE_PLACEHOLDER,
    Dropped,
    Part,
    Record,
    Result,
    Skip,
    Turn,
    UnitsRead,
)

SPLITS = ("train", "val")
ROLE, DOMAIN, FAMILY = "domain", "driving", "multi-view"
LICENCE = "text CC BY-NC-SA 4.0 (DriveLM); pictures nuScenes terms of use (CC BY-NC-SA 4.0)"
SOURCE = REPOSITORY
FILES = "v1_1_train_nus.json or v1_1_val_nus_q_only.json, and nuscenes/samples/CAM_*/*.jpg"
PARTS = "frames"
COORDINATES = (
    "integers 0-1000 of the 2688x896 mosaic; raw: pixels of a 1600x900 view, top left origin; "
    "clamped to the view, halves away from zero"
)

PROMPT = (
    "Objects are encoded using <c, CAM, [cx,cy]>, where c is the identifier, CAM indicates the "
    "camera where the object’s center point is situated, and x, y represent the horizontal and "
    "vertical coordinates of the center point of the 2D bounding box."
)
TWIN_SUFFIX = "#mc"
"""Ends the id of a record's lettered twin, the form that the challenge asks: only it is scored."""
IMPORTANT_OBJECTS = "What are the important objects in the current scene?"

Choices = Literal["lettered", "open", "both"]


@dataclass(frozen=True, slots=True)
class _Options:
    """How frames are converted; see `convert`."""

    choices: Choices = "lettered"
    boxes: bool = True
    quality: int = JPEG_QUALITY
    seed: int = 42


def splits(raw: Path, *, annotations: Path | None = None, **_: object) -> list[str]:
    """Return the splits whose annotation file is there, or that of `annotations`, by its name."""
    return present_splits(raw, annotations)


def sources(raw: Path, split: str, *, annotations: Path | None = None, **_: object) -> list[Path]:
    """Return the annotation file of a split.

    Raises:
        SourceError: It is missing, a folder or empty.
    """
    return [annotation_file(raw, split, annotations)]


def parts(
    raw: Path,
    split: str,
    *,
    annotations: Path | None = None,
    quality: int = JPEG_QUALITY,
    **_: object,
) -> list[Part]:
    """Return one part a frame, with the number of its questions.

    Raises:
        SourceError: The annotation file is missing, malformed, or has a token twice.
        UsageError: `quality` is not 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"--quality is {quality}, expected 1 to 100")
    return index_frames(annotation_file(raw, split, annotations))


def convert_part(raw: Path, split: str, part: Part, **options: Any) -> Iterator[Result]:
    """Yield the results of a frame's questions, in their order.

    Raises:
        SourceError: The annotation file can no longer be read.
    """
    options.pop("annotations", None)
    place = part.payload
    assert isinstance(place, FramePlace)
    try:
        frame = read_frame(raw, place, answers_expected=split == "train")
    except (FrameError, ImageError) as error:
        yield Skip(str(place), error.reason, error.detail, part.units)
        return
    yield from frame.skips
    yield from _FrameConverter(split, place, frame, _Options(**options)).results()


def convert(
    raw: Path,
    split: str,
    *,
    annotations: Annotated[
        Path | None, "Annotation file, when not found in RAW by its official name."
    ] = None,
    choices: Annotated[
        Choices, "Moving status and behaviour questions: with options A to D, open, or both."
    ] = "lettered",
    boxes: Annotated[
        bool, "Put a box behind each tag where the important objects are asked for."
    ] = True,
    quality: Annotated[int, "JPEG quality of the mosaics, 1 to 100."] = JPEG_QUALITY,
    seed: Annotated[int, "Decides, with each record's id, the options drawn."] = 42,
) -> Iterator[Result]:
    """Yield the results of a split: one for each question, in the file's order.

    Raises:
        SourceError: The annotation file is missing, malformed, or has a token twice.
        UsageError: `quality` is not 1 to 100.
    """
    options = {"choices": choices, "boxes": boxes, "quality": quality, "seed": seed}
    for part in parts(raw, split, annotations=annotations, quality=quality):
        yield UnitsRead(part.units)
        yield from convert_part(raw, split, part, **options)


class _FrameConverter:
    """Turns the questions of one frame into records."""

    def __init__(self, split: str, place: FramePlace, frame: Frame, options: _Options) -> None:
        self._split, self._place, self._frame, self._options = split, place, frame, options
        self._mosaic = Mosaic(frame.views, f"images/{place.name}.jpg", quality=options.quality)
        self._boxes = ObjectBoxes(frame.boxes_px) if options.boxes else None
        self._tags = frame.tags
        if frame.objects is not None and any(question.answer for question in frame.questions):
            self._tags = challenge_tags(frame.questions, frame.objects) | frame.tags

    def results(self) -> Iterator[Result]:
        """Yield the results of every question that could be read."""
        for question in self._frame.questions:
            try:
                yield from list(self._question(question))
            except TextError as error:
                place = self._place.question(question.number)
                yield Skip(place, error.reason, error.detail)

    def _question(self, question: Question) -> Iterator[Record]:
        row = f"{self._place.name}_{question.number}"
        identifier = f"drivelm/{self._split}/{row}"
        choices = self._options.choices
        lettered = None
        notes: tuple[str, ...] = ()
        if choices != "open" and question.answer and option_pool(question):
            lettered = letter_question(question, seed=self._options.seed, record_id=identifier)
            notes = () if lettered else ("answer-outside-pool",)
        if lettered is None or choices == "both":
            yield self._record(identifier, row, question, notes=notes, scored=lettered is None)
        if lettered is not None:
            asked = Question(question.number, question.family, lettered.question, lettered.answer)
            suffix = TWIN_SUFFIX if choices == "both" else ""
            yield self._record(identifier + suffix, row, asked, options=lettered.options)

    def _record(
        self,
        identifier: str,
        row: str,
        question: Question,
        *,
        options: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        scored: bool = True,
    ) -> Record:
        answer, dropped, more_notes = self._answer(question)
        asked = tags_to_mosaic(question.text)
        extra: dict[str, object] = {}
        if scored and question.number in self._tags:
            extra["tag"] = self._tags[question.number]
        extra |= {
            "question": question.text,
            "answer": question.answer,
            "scene": self._place.scene,
            "frame": self._place.frame,
            "family": question.family,
        }
        if options:
            extra["options"] = options
        return Record(
            id=identifier,
            image=(self._mosaic,),
            turns=(
                Turn("human", f"{IMAGE_PLACEHOLDER}\n{PROMPT}\n{asked}"),
                Turn("gpt", answer),
            ),
            task="multiview",
            row=row,
            extra=msgspec.json.encode(extra).decode(),
            dropped=dropped,
            notes=(*notes, *more_notes),
        )

    def _answer(self, question: Question) -> tuple[str, tuple[Dropped, ...], tuple[str, ...]]:
        """Return the converted answer, what was dropped from its list, and notes."""
        boxes: ObjectBoxes | None = None
        notes: tuple[str, ...] = ()
        if IMPORTANT_OBJECTS in question.text and self._boxes is not None:
            if self._frame.objects is None:
                # The challenge's own files have answers, but not the boxes.
                notes = ("no-object-infos",) if question.answer else ()
            else:
                boxes = self._boxes
        tagged = tags_to_mosaic(question.answer, boxes)
        converted, dropped = lists_to_mosaic(tagged)
        return converted, dropped, notes
