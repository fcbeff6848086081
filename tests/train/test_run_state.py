"""The newest checkpoint, and what it says of itself."""

import os
from pathlib import Path

import pytest

from adapt.errors import CheckpointError
from adapt.train.run_state import RunState, find_latest, read_state


def write(folder: Path, step: int, text: str) -> Path:
    (folder / f"step-{step}").mkdir()
    (folder / f"step-{step}" / "state.json").write_bytes(os.fsencode(text))
    return folder / f"step-{step}"


STATE = '{"step": 4, "epoch": 1, "pack": 8, "plan": "ab", "ranks": 2, "lost": [7], "format": 1}'


def test_the_marker_names_the_newest(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    write(tmp_path, 4, STATE)
    write(tmp_path, 9, STATE)
    assert find_latest(tmp_path) is None
    (tmp_path / "latest").write_text("step-4\n")
    assert find_latest(tmp_path) == tmp_path / "step-4"


def test_a_marker_without_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 2, STATE)
    (tmp_path / "latest").write_text("step-4\n")
    with pytest.raises(CheckpointError, match=r"names step-4, which is not there.*there: step-2"):
        find_latest(tmp_path)


def test_a_state(tmp_path: Path) -> None:
    assert read_state(write(tmp_path, 4, STATE)) == RunState(
        step=4, epoch=1, pack=8, plan="ab", ranks=2, lost=(7,)
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (STATE[:-9], "older checkpoint"),
        (STATE.replace('"step": 4', '"step": "4"'), r"\$\.step"),
        ("\udcff", "older checkpoint"),
        (STATE.replace('"format": 1', '"format": 2'), "format 2, this version reads 1"),
    ],
)
def test_a_damaged_state(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_state(write(tmp_path, 4, text))
