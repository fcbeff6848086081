"""How many records of 800 bytes `adapt check` reads a second on one core.

    python benchmarks/check.py [--records 200000]

Three kinds of file: questions alone, with a box and a point tag, and in dataset.json's company
(whose sha256 is checked too). Beside them the JSON Schema alone, as a validator reads it.
Time is that of the process (CPU), so that other work on the machine does not enter.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import tempfile
import time
from pathlib import Path

import msgspec
import orjson

from adapt.check import check_paths
from adapt.jsonl import sha256_file, write_json
from adapt.problems import schema_problems
from adapt.records import Message, RecordLine, Source

RESULT = Path(__file__).parent / "results" / "check.json"
RECORD_BYTES = 800
SCHEMA_RECORDS = 4000
AIM_PER_S = 100_000


def record(index: int, answer: str) -> bytes:
    """Return a record's line of exactly RECORD_BYTES, its end included."""
    name = f"{index:07d}"
    question = "<image>\nWhat is shown in the picture, and where does the thing that moves stand?"

    def line(padding: str) -> bytes:
        turns = [Message("human", question), Message("gpt", answer + padding)]
        value = RecordLine(
            id=f"bench/train/{name}",
            image=[f"images/{name}.jpg"],
            width_list=[2688],
            height_list=[896],
            conversations=turns,
            task="vqa",
            source=Source("bench", "train", name),
            extra="",
        )
        return msgspec.json.encode(value) + b"\n"

    text = "and then it goes on "
    missing = RECORD_BYTES - len(line(""))
    return line((text * (missing // len(text) + 1))[:missing])


def write_manifest(folder: Path, file: Path, records: int) -> None:
    """Write a dataset.json that agrees with the records file."""
    counts = {"skip_reasons": {}, "drop_reasons": {}, "notes": {}}
    ledger = {"units_in": records, "used": records, "skipped": 0, "not_in_split": 0}
    ledger |= {"records": records, "objects_dropped": 0} | counts
    converter = {"name": "bench", "version": "0"}
    entry = {
        "made_by": {"converter": converter, "options": {}, "limit": None, "inputs": {}},
        "images": "raw",
        "files": [
            {
                "path": file.name,
                "records": records,
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
        ],
        "ledger": ledger,
    }
    head = {"format": 1, "name": "bench", "converter": converter, "role": "domain"}
    head |= {"domain": "", "root": ".", "licence": "", "source": "", "coordinates": ""}
    write_json(folder / "dataset.json", head | {"splits": {"train": entry}})


def rate(path: Path, records: int, repeats: int) -> float:
    """Return the best of several runs in records a second of CPU time."""
    best_s = float("inf")
    for _ in range(repeats):
        start_s = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            check_paths([path], images=False)
        best_s = min(best_s, time.process_time() - start_s)
    return records / best_s


def schema_rate(line: bytes) -> float:
    """Return records a second of JSON parsing and the schema alone."""
    start_s = time.process_time()
    for _ in range(SCHEMA_RECORDS):
        assert not schema_problems(orjson.loads(line), "record")
    return SCHEMA_RECORDS / (time.process_time() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    boxed = "The <ref>car</ref><box>[[12, 40, 500, 600]]</box> <c1,CAM_FRONT,[512, 400]> moves. "
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind, answer in (("plain", "It is a car. "), ("boxes", boxed)):
            folder = Path(temporary) / kind
            folder.mkdir()
            file = folder / "train.jsonl"
            with file.open("wb") as output:
                output.writelines(record(index, answer) for index in range(options.records))
            figures[f"{kind}_records_per_s"] = round(rate(file, options.records, options.repeats))
            if kind == "plain":
                write_manifest(folder, file, options.records)
                with_sums = rate(folder, options.records, options.repeats)
                figures["plain_with_dataset_json_records_per_s"] = round(with_sums)
    figures["schema_alone_records_per_s"] = round(schema_rate(record(0, boxed)))
    result = {
        "benchmark": "check",
        "aim": f"at least {AIM_PER_S} records of {RECORD_BYTES} bytes a second on one core",
        "records": options.records,
        "cores": 1,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 1),
        **figures,
    }
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    write_json(options.out, result)


if __name__ == "__main__":
    main()
