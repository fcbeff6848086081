"""A small workspace to train in: pictures, records, a mix."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from adapt.jsonl import write_lines
from adapt.mix import MixOptions, run_mix
from adapt.records import Message, RecordLine, Source

RECIPE = {
    "model": "tiny",
    "mix": "mix",
    "dtype": "fp32",
    "deepspeed": "zero2",
    "max_tiles": 4,
    "max_record_tokens": 400,
    "max_pack_tokens": 400,
    "max_pack_tiles": 8,
    "gradient_accumulation": 2,
    "learning_rate": 2e-3,
    "max_steps": 12,
    "save_every": 4,
    "keep_checkpoints": 2,
    "data_workers": 2,
}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def make_records(name: str, count: int) -> list[RecordLine]:
    """Records about one, two or no pictures, one or two turns, answers of several lengths."""
    names = list(COLOURS)
    records = []
    for index in range(count):
        colours = [names[(index + other) % 3] for other in range(index % 4 if index % 4 < 3 else 1)]
        answer = " and ".join(colours) or "There is no picture here at all."
        turns = [
            Message("human", "<image>" * len(colours) + f"\nWhich colours, number {index}?"),
            Message("gpt", answer),
        ]
        if index % 5 == 0:
            turns += [Message("human", "Are you sure?"), Message("gpt", "Yes.")]
        records.append(
            RecordLine(
                id=f"{name}/train/{index}",
                image=[f"images/{colour}.png" for colour in colours],
                width_list=[96] * len(colours),
                height_list=[48] * len(colours),
                conversations=turns,
                task="vqa",
                source=Source(name, "train", str(index)),
                extra="",
            )
        )
    return records


def make_dataset(folder: Path, records: list[RecordLine]) -> Path:
    (folder / "images").mkdir(parents=True)
    for number, (name, colour) in enumerate(COLOURS.items()):
        noise = np.random.default_rng(number).integers(0, 30, (48, 96, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    write_lines(folder / "train.jsonl", records)
    return folder


def make_mix(workspace: Path, *, domain: int = 24, general: int = 6) -> Path:
    """Write two datasets and their mix; returns the mix's folder."""
    domain_set = make_dataset(workspace / "colours", make_records("colours", domain))
    general_set = make_dataset(workspace / "chat", make_records("chat", general))
    run_mix(
        MixOptions(
            ratio=f"{general}:{domain}",
            domain=(domain_set,),
            general=(general_set,),
            out=workspace / "mix",
        )
    )
    return workspace / "mix"


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    return make_mix(tmp_path)


@pytest.fixture
def recipe(mix: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(mix.parent)
    return write_recipe(mix.parent)


def write_recipe(workspace: Path, **options) -> Path:
    path = workspace / "colours.yaml"
    path.write_text(yaml.safe_dump(RECIPE | options))
    return path
