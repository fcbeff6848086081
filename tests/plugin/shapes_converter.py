"""Shapes: an outside converter for tests, reading SPLIT.json = [{"name", "colour", ...}, ...].

Units: entries of the file; `"split"` names another split, `"bad"` gives a skip, `"broken"` a
picture that cannot be made, `"twice"` two records of one unit, `"answer"` another answer than
the colour, `"id"` another id than its number.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image

from adapt.images import ImageError
from adapt.jsonl import read_json
from adapt.records import NotInSplit, Part, Record, Result, Skip, Turn

SPLITS = ("train", "val")
ROLE, DOMAIN = "domain", "shapes"
FILES, SOURCE, LICENCE = "{train,val}.json", "this test", "none"
PARTS = "shapes"


@dataclass(frozen=True)
class Square:
    """A picture of one colour."""

    name: str
    colour: str
    broken: bool
    delay_s: float

    @property
    def file(self) -> str:
        return f"images/{self.name}.png"

    @property
    def size(self) -> tuple[int, int]:
        return (8, 8)

    def make(self) -> bytes:
        time.sleep(self.delay_s)
        if self.broken:
            raise ImageError("image-broken", f"{self.name} cannot be drawn")
        buffer = io.BytesIO()
        Image.new("RGB", self.size, self.colour).save(buffer, "PNG")
        return buffer.getvalue()


def sources(raw: Path, split: str, **_: object) -> list[Path]:
    return [raw / f"{split}.json"]


def parts(raw: Path, split: str, **_: object) -> list[Part]:
    rows = read_json(raw / f"{split}.json")
    return [Part(f"shape {i}", 1, (i, row)) for i, row in enumerate(rows)]


def convert_part(
    raw: Path, split: str, part: Part, *, delay_s: float = 0, style: str = "long"
) -> Iterator[Result]:
    index, row = part.payload
    yield from _results(split, index, row, delay_s, style)


def convert(
    raw: Path,
    split: str,
    *,
    delay_s: Annotated[float, "Seconds that drawing takes."] = 0.0,
    style: Annotated[Literal["long", "short"], "Form of the question."] = "long",
) -> Iterator[Result]:
    for part in parts(raw, split):
        yield from convert_part(raw, split, part, delay_s=delay_s, style=style)


def _results(
    split: str, index: int, row: dict[str, Any], delay_s: float, style: str
) -> Iterator[Result]:
    place = f"{split}.json[{index}]"
    if "split" in row:
        yield NotInSplit(place)
        return
    if "bad" in row:
        yield Skip(place, "bad-row", row["bad"])
        return
    question = "What colour is this square?" if style == "long" else "Colour?"
    picture = Square(row["name"], row["colour"], "broken" in row, delay_s)
    for suffix in ("", "#2") if "twice" in row else ("",):
        yield Record(
            id=f"shapes/{split}/{row.get('id', index)}{suffix}",
            image=(picture,),
            turns=(
                Turn("human", f"<image>\n{question}"),
                Turn("gpt", row.get("answer", row["colour"])),
            ),
            task="classification",
            row=str(index),
        )
