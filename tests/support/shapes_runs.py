"""Runs of the outside converter `shapes`, and what they leave."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapt.cli import run

PLUGIN = Path(__file__).parents[1] / "plugin"
COLOURS = ("red", "lime", "blue", "yellow")


def install_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the outside converters the way pip does: metadata on the import path."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))


def make_raw(folder: Path) -> Path:
    """Write six rows to train and the first two of them to val; return the folder."""
    folder.mkdir()
    rows = [{"name": f"s{i}", "colour": COLOURS[i % 4]} for i in range(6)]
    write_rows(folder, "train", rows)
    write_rows(folder, "val", rows[:2])
    return folder


def write_rows(raw: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (raw / f"{split}.json").write_text(json.dumps(rows))


def convert(raw: Path, out: Path, *options: str) -> int:
    return run(["convert", "shapes", str(raw), "--out", str(out), *options])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "dataset.json").read_text())  # type: ignore[no-any-return]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
