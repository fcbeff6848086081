"""metrics.jsonl and events, going on after a stop too."""

from pathlib import Path

import msgspec
import pytest

from adapt.errors import EnvironmentFault
from adapt.run_paths import RunFolder
from adapt.train.metrics import StepMetrics, keep_until, open_metrics, summarise


def step(number: int, *, loss: float = 1.0, seconds: float = 0.5) -> StepMetrics:
    return StepMetrics(
        step=number,
        epoch=0,
        loss=loss,
        lr=number / 10,
        grad_norm=2.0,
        tokens=100,
        supervised=7,
        tiles=3,
        s=seconds,
    )


def test_a_line_stands_for_the_steps_since_the_last() -> None:
    assert summarise([step(4, loss=1.0), step(5, loss=3.0, seconds=1.5)]) == {
        "step": 5,
        "epoch": 0,
        "loss": 2.0,
        "lr": 0.5,
        "grad_norm": 2.0,
        "tokens": 200,
        "supervised": 14,
        "tiles": 6,
        "tokens_per_s": 100.0,
        "s": 2.0,
    }


def write_steps(folder: Path, start: int, total: int) -> None:
    with open_metrics(RunFolder(folder), start=start, total=total, tensorboard=False) as metrics:
        for number in range(start + 1, total + 1):
            metrics.add(step(number), flush=True)


def steps_in(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line)["step"] for line in lines]


def test_no_step_stands_twice_after_going_on(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 6)
    write_steps(tmp_path, 4, 8)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_cut_off_last_line_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    keep_until(path, 9)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    keep_until(path, 9)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_events_have_the_same_numbers(tmp_path: Path) -> None:
    with open_metrics(RunFolder(tmp_path), start=0, total=1, tensorboard=True) as metrics:
        metrics.add(step(1, loss=0.25), flush=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert found == {
        "train/loss": [(1, 0.25)],
        "train/lr": [(1, pytest.approx(0.1))],
        "train/grad_norm": [(1, 2.0)],
        "train/tokens_per_s": [(1, 200.0)],
    }


def test_a_folder_that_is_gone_is_an_environment_fault(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with open_metrics(RunFolder(folder), start=0, total=1, tensorboard=False) as metrics:
        folder.rmdir()
        with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl: cannot be written"):
            metrics.add(step(1), flush=True)
