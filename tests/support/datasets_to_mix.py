"""Datasets to mix: records of numbered pictures, in folders laid out by the defaults."""

from pathlib import Path

import msgspec

from adapt.records import Message, RecordLine, Source


def line_of(dataset: str, number: int, answer: str = "4", split: str = "train") -> RecordLine:
    return RecordLine(
        id=f"{dataset}/{split}/{number}",
        image=[f"{number}.jpg"],
        width_list=[640],
        height_list=[480],
        conversations=[Message("human", "<image>\nHow many?"), Message("gpt", answer)],
        task="vqa",
        source=Source(dataset, split, str(number)),
        extra="",
    )


def write(path: Path, lines: list[RecordLine]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def make(folder: Path, rows: int, name: str = "train.jsonl", answer: str = "4") -> Path:
    """Write a dataset of `rows` records called as its folder; return the folder."""
    split = name.removesuffix(".jsonl").partition("-")[0]
    write(folder / name, [line_of(folder.name, number, answer, split) for number in range(rows)])
    return folder


def make_workspace(folder: Path) -> Path:
    """Write 531 domain and 150 + 50 general rows where `adapt mix` looks; return the folder."""
    make(folder / "data" / "domain" / "drivelm", 531)
    make(folder / "data" / "general" / "llava", 150)
    make(folder / "data" / "general" / "chart", 50)
    return folder
