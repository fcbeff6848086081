"""A record as its JSON says it, to be changed."""

from typing import Any


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": f"set/train/{number}",
        "image": ["images/1.png"],
        "width_list": [32],
        "height_list": [16],
        "conversations": turns("<image>\nHow many?", "4"),
        "task": "vqa",
        "source": {"dataset": "set", "split": "train", "row": str(number)},
        "extra": "",
    }
    return value | changes


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
