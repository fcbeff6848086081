"""Rows of the LLaVA dialect, and what the converter makes of them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adapt.converters import llava
from adapt.records import Record, Result


def write_pictures(folder: Path) -> Path:
    """Write three small pictures; return the folder."""
    for name, size in (("a.jpg", (40, 20)), ("vg/b.jpg", (20, 40)), ("c.png", (30, 30))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return folder


def write_list(raw: Path, *rows: object, name: str = "data.json") -> Path:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def convert(raw: Path, **options: Any) -> list[Result]:
    return list(llava.convert(raw, "train", **options))


def convert_row(raw: Path, row: object, **options: Any) -> Result:
    write_list(raw, row)
    (result,) = convert(raw, **options)
    return result


def record(result: Result) -> Record:
    assert isinstance(result, Record), result
    return result


def texts(result: Result) -> list[str]:
    return [turn.text for turn in record(result).turns]


def llava_row(*values: str, **others: object) -> dict[str, object]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns, **others}
