"""The resume state of a conversion and skipped.jsonl, when something has damaged them."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import tree
from shapes_runs import convert, install_plugin, write_rows


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(monkeypatch)


def write(raw: Path, split: str, *last: tuple[str, int]) -> None:
    raw.mkdir(exist_ok=True)
    rows = [{"name": "a", "colour": "red"}, {"name": "b", "colour": "red", **dict(last)}]
    write_rows(raw, split, rows)


@pytest.mark.parametrize("damaged", ["train.json", "train/000000.part"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"made_by": 3}', "\0\0"])
def test_a_damaged_state_is_made_again(tmp_path: Path, damaged: str, text: str) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write(raw, "train", ("broken", 1))
    assert convert(raw, out, "--split", "train") == 3
    whole = tree(out)
    (out / ".adapt" / damaged).write_text(text)
    assert convert(raw, out, "--split", "train") == 3
    assert tree(out) == whole


def test_foreign_lines_in_skipped_jsonl_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write(raw, "train")
    write(raw, "val")
    assert convert(raw, out, "--split", "train") == 0
    (out / "skipped.jsonl").write_text("no JSON\n")
    assert convert(raw, out, "--split", "val") == 2
    assert "skipped.jsonl:1: no line of a converter: JSON is malformed" in capsys.readouterr().err
