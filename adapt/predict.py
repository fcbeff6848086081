"""`adapt predict`: a model's greedy answers to records, in the order of the records.

    records --window--> sorted by length, batches --pictures read ahead--> answers --order--> OUT

Run again, it goes on after the answers that are there. Answers of another model or with other
options are never mixed in: it refuses, or with `--overwrite` discards them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adapt.dataset import open_dataset
from adapt.errors import UsageError
from adapt.jsonl import disk_fault, read_records, write_json
from adapt.one_writer import one_writer
from adapt.prediction_file import (
    Prediction,
    about_path,
    answers_there,
    discard,
    partial_path,
    question_of,
    weights_digest,
)
from adapt.progress import progress
from adapt.recipe import Recipe, load_recipe
from adapt.records import RecordLine
from adapt.threads import wait_politely

if TYPE_CHECKING:
    import torch

    from adapt.answer import Answer, Answerer, Prompt, Tiling
    from adapt.models.handle import ModelHandle

FORMAT = 1
MOST_TILES = 12
# Batches that are sorted by length together: more would waste less padding, and lose more work
# when stopped.
WINDOW_BATCHES = 8
READERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What to answer, and how.

    Args:
        records: Records file, or a dataset folder of one split.
        model: Checkpoint folder, run folder or preset.
        out: Predictions file.
        batch_size: Records a batch.
        max_new_tokens: Longest answer.
        max_tiles: Most tiles a record; None: as in the run that trained the model, else 12.
        limit: Answer the first so many records only.
        device: `cpu`, `cuda` or `cuda:N`; None: a GPU, if there is one.
        overwrite: Discard answers that are there.
    """

    records: Path
    model: str
    out: Path
    batch_size: int = 8
    max_new_tokens: int = 200
    max_tiles: int | None = None
    limit: int | None = None
    device: str | None = None
    overwrite: bool = False


def run_predict(options: PredictOptions) -> Path:
    """Answer records and return the predictions file.

    Raises:
        SourceError: The records are not there.
        RecordError: A record cannot be asked, a picture of it cannot be read, or answers there are
            to other records.
        UsageError: Answers there were made with another model or other options.
    """
    wait_politely()
    _check_numbers(options)
    path, root = find_records(options.records)
    if options.out.resolve() == path.resolve():
        raise UsageError(f"{options.out}: holds the records; name another file for the answers")
    busy = f"{options.out}: another adapt predict is writing it; wait for it"
    with one_writer(options.out.with_name(f".{options.out.name}.lock"), busy=busy):
        return _run_alone(options, path, root)


def find_records(path: Path) -> tuple[Path, Path]:
    """Return the records file to answer, and the folder its image paths start at.

    Raises:
        UsageError: A folder holds more than one records file.
    """
    dataset = open_dataset(path)
    files = [file.path for split in dataset.splits.values() for file in split]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{path}: holds several records files ({names}); name one of them")
    return files[0], dataset.root


def choose_tiling(options: PredictOptions) -> Tiling:
    """Return how to cut pictures: as the run that trained the model did, unless asked otherwise."""
    from adapt.answer import Tiling

    recipe = _recipe_of(Path(options.model))
    most = options.max_tiles or (recipe.max_tiles if recipe else MOST_TILES)
    if recipe is None:
        return Tiling(most)
    return Tiling(most, min(recipe.min_tiles, most), recipe.thumbnail)


def describe(
    options: PredictOptions, handle: ModelHandle, tiling: Tiling, device: torch.device
) -> dict[str, Any]:
    """Return everything that decides an answer, apart from its record."""
    from adapt.answer import choose_dtype

    return {
        "format": FORMAT,
        "model": options.model,
        "weights": weights_digest(handle.folder) if handle.folder else "random",
        "template": handle.template.name,
        "dtype": str(choose_dtype(device)).removeprefix("torch."),
        "max_new_tokens": options.max_new_tokens,
        **asdict(tiling),
    }


def _check_numbers(options: PredictOptions) -> None:
    for name in ("batch_size", "max_new_tokens", "max_tiles", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if options.out.is_dir():
        raise UsageError(f"{options.out}: is a folder, expected a file to write answers to")


def _recipe_of(model: Path) -> Recipe | None:
    """Return the recipe of the run that a checkpoint lies in, None outside of any run."""
    if not model.is_dir():
        return None
    for folder in [model, *model.resolve().parents[:3]]:
        if (folder / "recipe.yaml").is_file() and (folder / "plan").is_dir():
            return load_recipe(folder / "recipe.yaml")
    return None


def _run_alone(options: PredictOptions, path: Path, root: Path) -> Path:
    """Answer the records of `path` while nothing else writes the predictions file."""
    from adapt.answer import Answerer, find_device
    from adapt.models.handle import open_model
    from adapt.quiet import quiet_transformers

    records = [record for _, record in islice(read_records(path), options.limit)]
    handle = open_model(options.model)
    tiling = choose_tiling(options)
    device = find_device(options.device)
    about = describe(options, handle, tiling, device)
    if options.overwrite:
        discard(options.out)
    done = answers_there(options.out, about, records)
    if done >= len(records) and options.out.exists():
        print(f"{options.out}: has all {done} answers already")
        return options.out
    with quiet_transformers():
        answerer = Answerer(
            handle, device, tiling, max_new_tokens=options.max_new_tokens, root=root
        )
        _answer_rest(options, records, done, answerer, about)
    try:
        partial_path(options.out).replace(options.out)
    except OSError as error:
        raise disk_fault(error, options.out) from error
    print(f"{options.out}: {len(records)} answers of {options.model}")
    return options.out


def _answer_rest(
    options: PredictOptions,
    records: list[RecordLine],
    done: int,
    answerer: Answerer,
    about: dict[str, Any],
) -> None:
    """Append the answers to records from `done` on to the partial file, after `about`."""
    partial = partial_path(options.out)
    with progress("predict", len(records), "records", done=done) as advance:
        for lines in _in_order(_answers(answerer, options, records, done), done):
            if not partial.exists():
                write_json(about_path(options.out), about)
            try:
                with partial.open("ab") as file:
                    file.write(b"".join(lines))
            except OSError as error:
                raise disk_fault(error, partial) from error
            advance(len(lines))


def _answers(
    answerer: Answerer, options: PredictOptions, records: list[RecordLine], done: int
) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the lines of each batch with their places."""
    from adapt.reading_ahead import read_ahead

    batches = read_ahead(answerer.load, _batches(answerer, options, records, done), workers=READERS)
    with closing(batches):
        for batch in batches:
            answers = answerer.answer(batch)
            yield [
                (prompt.index, _line(prompt, answer, options.model))
                for prompt, answer in zip(batch.prompts, answers, strict=True)
            ]


def _batches(
    answerer: Answerer, options: PredictOptions, records: list[RecordLine], done: int
) -> Iterator[list[Prompt]]:
    window = options.batch_size * WINDOW_BATCHES
    for first in range(done, len(records), window):
        places = range(first, min(first + window, len(records)))
        prompts = [answerer.prompt(place, records[place]) for place in places]
        yield from answerer.batches(prompts, options.batch_size)


def _in_order(batches: Iterable[list[tuple[int, bytes]]], start: int) -> Iterator[list[bytes]]:
    """Yield lines in the order of their places, as soon as none before them is missing."""
    waiting: dict[int, bytes] = {}
    for batch in batches:
        waiting.update(batch)
        ready = []
        while start in waiting:
            ready.append(waiting.pop(start))
            start += 1
        if ready:
            yield ready


def _line(prompt: Prompt, answer: Answer, model: str) -> bytes:
    record = prompt.record
    prediction = Prediction(
        id=record.id,
        question=question_of(record),
        answer=answer.text,
        gt_answer=record.conversations[-1].value,
        source=record.source,
        model=model,
        prompt_tokens=len(prompt.input_ids),
        answer_tokens=answer.tokens,
        finish=answer.finish,
    )
    return msgspec.json.encode(prediction) + b"\n"
