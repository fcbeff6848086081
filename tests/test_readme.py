"""The README's commands, as they stand there, on a small workspace."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from adapt.cli import run
from adapt.synthetic import TRUTH_FILE, VAL_FILE, write_driving, write_general

README = Path(__file__).resolve().parents[1] / "README.md"
# The recipe's own model would be fetched, and its whole schedule run.
SMALL = {
    "plan": ["--set", "model=tiny"],
    "train": ["--set", "model=tiny", "--set", "max_steps=2", "--set", "max_tiles=2"],
    "predict": ["--max-new-tokens", "4", "--max-tiles", "1"],
}


def commands(heading: str) -> list[list[str]]:
    """Return the words of each command in the first block below a heading."""
    text = README.read_text().split(f"## {heading}\n", 1)[1]
    block = re.split(r"^```\n", text, flags=re.MULTILINE)[1]
    return [
        words[1:]
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))[:1] == ["adapt"]
    ]


def test_with_your_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands("With your data")
    assert [words[0] for words in found] == [
        *("convert", "convert", "check", "mix", "plan", "train", "predict", "eval"),
    ]
    monkeypatch.chdir(tmp_path)
    raw = Path("data/raw/drivelm")
    write_driving(raw, train_frames=4, val_frames=1, seed=0)
    write_general(Path("data/raw/llava"), rows=40, seed=0)
    # Scenes kept apart, whose answers are known.
    (raw / TRUTH_FILE).rename(raw / VAL_FILE)
    for words in found:
        assert run([*words, *SMALL.get(words[0], [])]) == 0, words
    assert Path("runs/drivelm/model/config.json").exists()
