"""Listing: a converter without parts, in the form that style asks for, reading list.json."""

import json
from collections.abc import Iterator
from pathlib import Path

from adapt.records import NotInSplit, Record, Skip, Turn

SPLITS = ("train",)
ROLE, DOMAIN = "general", "listing"


def convert(raw: Path, split: str) -> Iterator[Record | Skip | NotInSplit]:
    for index, row in enumerate(json.loads((raw / "list.json").read_text())):
        if row.get("other"):
            yield NotInSplit(f"[{index}]")
        elif not row.get("answer"):
            yield Skip(f"[{index}]", "no-answer", "the answer is empty")
        else:
            yield Record(
                id=f"listing/{split}/{index}",
                image=(row["image"],) if "image" in row else (),
                turns=(
                    Turn("human", ("<image>\n" if "image" in row else "") + row["question"]),
                    Turn("gpt", row["answer"]),
                ),
            )
