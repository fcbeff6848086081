"""`adapt demo`: the whole loop offline, on a small world drawn from a seed.

    synthetic raw files -> convert -> check -> mix 1:4 -> plan -> train tiny -> predict -> eval

It runs the real commands and ends with status 1 unless the trained model has learnt from the
pictures: on unseen frames it must beat, by `MARGIN` of accuracy, the untrained model, itself on
grey pictures, and the commonest training answer to each type of question.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import orjson

from adapt.coords import POINT_PATTERN
from adapt.dataset import open_dataset
from adapt.draw import draw_record
from adapt.errors import CheckFailed, UsageError, error_of_status
from adapt.jsonl import read_lines, read_records, write_bytes
from adapt.records import RecordLine
from adapt.synthetic import TRUTH_FILE, grey_copy, write_driving, write_general
from adapt.threads import wait_politely

TRAIN_FRAMES = 200
VAL_FRAMES = 40
GENERAL_ROWS = 400
MARGIN = 0.20
ACCURACY_TAG = 0
MARKER = ".adapt-demo"

DRIVELM, GENERAL = Path("data/domain/drivelm"), Path("data/general/llava")
TRUTH, GREY, ANSWERS = Path("data/truth"), Path("data/grey"), Path("answers")


class Command(Protocol):
    """Runs a command of `adapt` and returns its exit status, see `adapt.cli.run`."""

    def __call__(self, arguments: list[str]) -> int: ...


def run_demo(out: Path, command: Command, *, seed: int) -> None:
    """Run the whole loop below `out` and show what was learnt.

    Args:
        out: Folder that is empty, or holds an earlier demo.
        command: What runs the commands.
        seed: Of the world that is drawn, and of the training.

    Raises:
        UsageError: `out` holds something else.
        CheckFailed: The model has not learnt from the pictures.
    """
    wait_politely()
    start = time.monotonic()
    _empty(out)
    run = partial(_run, command)
    with contextlib.chdir(out):
        write_driving(
            Path("data/raw/drivelm"), train_frames=TRAIN_FRAMES, val_frames=VAL_FRAMES, seed=seed
        )
        write_general(Path("data/raw/llava"), rows=GENERAL_ROWS, seed=seed)
        _prepare_data(run, seed)
        _predict(run, "untrained", "tiny", DRIVELM)
        run("train", "recipes/demo.yaml", "--set", f"seed={seed}", "--nproc", "1")
        _predict(run, "trained", "runs/demo", DRIVELM)
        _predict(run, "grey", "runs/demo", GREY)
        for name in ("untrained", "trained"):
            run(
                *("eval", "drivelm", "--predictions", f"{ANSWERS}/{name}.jsonl"),
                *("--truth", f"{TRUTH}/val.jsonl", "--json", f"{ANSWERS}/{name}.json"),
            )
        scores = compare()
    print(f"\neverything lies in {out}; {time.monotonic() - start:.0f} s in all")
    _judge(scores)


def _prepare_data(run: Callable[..., None], seed: int) -> None:
    truth = f"data/raw/drivelm/{TRUTH_FILE}"
    run("convert", "drivelm", "--choices", "open")
    run(
        *("convert", "drivelm", "--choices", "open", "--annotations", truth, "--split", "val"),
        *("--out", str(TRUTH)),
    )
    run("convert", "llava")
    run("check", str(DRIVELM), str(GENERAL), "--images")
    run("mix", "--ratio", "1:4", "--seed", str(seed))
    run("plan", "recipes/demo.yaml")
    _write_grey()
    _draw_frame()


def _empty(out: Path) -> None:
    """Make `out` an empty folder; what an earlier demo left there is removed."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, expected a folder for the demo")
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out}: holds something that is no demo; give another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _run(command: Command, *arguments: str) -> None:
    """Run a command of `adapt` in this process, as it would be typed."""
    print(f"\n$ adapt {' '.join(arguments)}", flush=True)
    status = command(list(arguments))
    if status > 128:
        signal.raise_signal(status - 128)
    if status:
        kind = error_of_status(status) or RuntimeError
        raise kind(f"adapt {' '.join(arguments)} ended with status {status}; see above")


def _predict(run: Callable[..., None], name: str, model: str, dataset: Path) -> None:
    run(
        *("predict", f"{dataset}/val.jsonl", "--model", model),
        *("--out", f"{ANSWERS}/{name}.jsonl", "--max-tiles", "1"),
        *("--batch-size", "64", "--max-new-tokens", "160"),
    )


def _write_grey() -> None:
    """Write the val records once more, over pictures of one grey."""
    records = DRIVELM / "val.jsonl"
    write_bytes(GREY / "val.jsonl", records.read_bytes())
    names = sorted({name for _, record in read_records(records) for name in record.image})
    grey_copy(DRIVELM, GREY, names)


def _draw_frame() -> None:
    """Draw the boxes of one frame's important objects, to be looked at."""
    dataset = open_dataset(DRIVELM)
    for _, record in read_records(dataset.splits["train"][0].path):
        if "<box>" in record.conversations[-1].value:
            draw_record(record, dataset.root).save("frame.jpg", quality=85)
            return


def question_type(record: RecordLine) -> str:
    """Return a record's question without the tags, which differ between frames."""
    return POINT_PATTERN.sub("TAG", record.conversations[0].value.rsplit("\n", 1)[-1])


def compare() -> dict[str, float]:
    """Return accuracy on unseen frames by contestant, and print it by type of question."""
    truth = [record for _, record in read_records(TRUTH / "val.jsonl") if _is_scored(record)]
    contestants = {name: _answers(name) for name in ("untrained", "grey", "trained")}
    contestants["commonest"] = _commonest(truth)
    right: dict[str, Counter[str]] = defaultdict(Counter)
    asked = Counter(question_type(record) for record in truth)
    for name, answers in contestants.items():
        for record in truth:
            correct = answers.get(record.id) == record.conversations[-1].value
            right[name][question_type(record)] += correct
    order = ("commonest", "untrained", "grey", "trained")
    print("\nshare of right answers on unseen frames")
    print(f"{'question':44} {'answers':>7} " + " ".join(f"{name:>9}" for name in order))
    for kind, count in asked.items():
        shares = " ".join(f"{right[name][kind] / count:9.2f}" for name in order)
        print(f"{kind[:44]:44} {count:7} {shares}")
    scores = {name: right[name].total() / asked.total() for name in order}
    print(f"{'all':44} {asked.total():7} " + " ".join(f"{scores[name]:9.2f}" for name in order))
    return scores


def _judge(scores: dict[str, float]) -> None:
    """Stop unless the trained model has learnt from the pictures."""
    best = max(("commonest", "untrained", "grey"), key=scores.__getitem__)
    if scores["trained"] < scores[best] + MARGIN:
        raise CheckFailed(
            f"the trained model answers {scores['trained']:.0%} of the questions, the {best} "
            f"answers {scores[best]:.0%}; expected {MARGIN:.0%} more: it has not learnt from the "
            f"pictures"
        )
    print(
        f"the trained model reads the pictures: {scores['trained']:.0%} right, "
        f"{scores['grey']:.0%} when they are grey, {scores['commonest']:.0%} by guessing the "
        f"commonest answer, {scores['untrained']:.0%} before training"
    )


def _is_scored(record: RecordLine) -> bool:
    """Return whether the challenge scores a record by accuracy."""
    return ACCURACY_TAG in orjson.loads(record.extra).get("tag", [])


def _answers(name: str) -> dict[str, str]:
    rows = (orjson.loads(line) for _, line in read_lines(ANSWERS / f"{name}.jsonl"))
    return {row["id"]: row["answer"] for row in rows}


def _commonest(truth: list[RecordLine]) -> dict[str, str]:
    """Answer every question with the commonest training answer to its type."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record in _train_records():
        seen[question_type(record)][record.conversations[-1].value] += 1
    return {
        record.id: seen[question_type(record)].most_common(1)[0][0]
        for record in truth
        if question_type(record) in seen
    }


def _train_records() -> Iterator[RecordLine]:
    for _, record in read_records(DRIVELM / "train.jsonl"):
        yield record
