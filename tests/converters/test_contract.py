"""What holds for every bundled converter, on raw files drawn for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import tree

from adapt.cli import run
from adapt.converter import converter_modules, load_converter
from adapt.synthetic import write_driving, write_general

BUNDLED = sorted(
    name for name, module in converter_modules().items() if module.startswith("adapt.converters.")
)
FAMILIES = {"classification", "grounding", "region", "multi-view", "video", "conversation"}
RAW: dict[str, Callable[[Path], None]] = {
    "drivelm": lambda folder: write_driving(folder, train_frames=3, val_frames=1, seed=1),
    "llava": lambda folder: write_general(folder, rows=12, seed=1),
}


def test_every_bundled_converter_is_tried() -> None:
    assert sorted(RAW) == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_it_declares_what_it_is(name: str) -> None:
    converter = load_converter(name)
    assert converter.declared("FAMILY") in FAMILIES
    for constant in ("LICENCE", "SOURCE", "FILES", "COORDINATES", "PARTS"):
        assert converter.declared(constant)
    words = str(converter.module.__doc__)
    for heading in ("Source:", "Raw:", "Units:"):
        assert f"\n{heading}" in words


@pytest.mark.parametrize("name", BUNDLED)
def test_its_records_are_valid_unique_and_the_same_each_time(name: str, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    RAW[name](raw)
    untouched = tree(raw)
    for folder, workers in ((out / "a", "1"), (out / "b", "2")):
        arguments = ["convert", name, str(raw), "--out", str(folder), "--workers", workers]
        assert run(arguments) == 0
    assert tree(out / "a") == tree(out / "b")
    assert tree(raw) == untouched
    assert run(["check", str(out / "a"), "--images"]) == 0
    splits = json.loads((out / "a" / "dataset.json").read_text())["splits"]
    ids = []
    for split, entry in splits.items():
        records = (out / "a" / f"{split}.jsonl").read_bytes().splitlines()
        ids += [json.loads(line)["id"] for line in records]
        ledger = entry["ledger"]
        assert (ledger["skipped"], ledger["not_in_split"]) == (0, 0)
        assert ledger["records"] == len(records) > 0
        # One of Record, one of its schema: what a reader may rely on.
        assert all(json.loads(line)["source"]["dataset"] == name for line in records)
    assert len(ids) == len(set(ids))
