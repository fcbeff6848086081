"""The resume state of a conversion and skipped.jsonl, when something has damaged them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapt.cli import run

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the outside converters the way pip does: metadata on the import path."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))


def convert(raw: Path, out: Path, *options: str) -> int:
    return run(["convert", "shapes", str(raw), "--out", str(out), "--workers", "1", *options])


def write_rows(raw: Path, split: str, *last: tuple[str, int]) -> None:
    raw.mkdir(exist_ok=True)
    rows = [{"name": "a", "colour": "red"}, {"name": "b", "colour": "red", **dict(last)}]
    (raw / f"{split}.json").write_text(json.dumps(rows))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("damaged", ["train.json", "train/000000.part"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"made_by": 3}', "\0\0"])
def test_a_damaged_state_is_made_again(tmp_path: Path, damaged: str, text: str) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_rows(raw, "train", ("broken", 1))
    assert convert(raw, out, "--split", "train") == 3
    whole = tree(out)
    (out / ".adapt" / damaged).write_text(text)
    assert convert(raw, out, "--split", "train") == 3
    assert tree(out) == whole


def test_foreign_lines_in_skipped_jsonl_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_rows(raw, "train")
    write_rows(raw, "val")
    assert convert(raw, out, "--split", "train") == 0
    (out / "skipped.jsonl").write_text("no JSON\n")
    assert convert(raw, out, "--split", "val") == 2
    assert "skipped.jsonl:1: no line of a converter: JSON is malformed" in capsys.readouterr().err
