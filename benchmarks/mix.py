"""How long `adapt mix` takes for one million rows, and how much memory.

    python benchmarks/mix.py [--rows 1000000]

800,000 domain and 400,000 general rows of 800 bytes; --ratio 1:4 gives a mix of 1,000,000. The
command runs in a process of its own, so that start-up and imports count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from adapt.jsonl import write_json
from adapt.records import Message, RecordLine, Source

RESULT = Path(__file__).parent / "results" / "mix.json"
RECORD_BYTES = 800
CHILD = """
import resource, sys
from adapt.cli import run
status = run(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
print("usage", usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status)
"""


def record(dataset: str, index: int) -> bytes:
    """Return a record's line of RECORD_BYTES, its end included."""
    name = f"{index:08d}"
    value = RecordLine(
        id=f"{dataset}/train/{name}",
        image=[f"images/{name}.jpg"],
        width_list=[2688],
        height_list=[896],
        conversations=[Message("human", "<image>\nWhat moves?"), Message("gpt", "It does. ")],
        task="vqa",
        source=Source(dataset, "train", name),
        extra="",
    )
    line = msgspec.json.encode(value)
    padding = b"words " * (RECORD_BYTES // 6)
    missing = RECORD_BYTES - 1 - len(line)
    return line.replace(b"It does. ", b"It does. " + padding[:missing]) + b"\n"


def write_dataset(folder: Path, rows: int) -> int:
    """Write a dataset of one file; return its bytes."""
    folder.mkdir(parents=True)
    path = folder / "train.jsonl"
    with path.open("wb") as file:
        file.writelines(record(folder.name, index) for index in range(rows))
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        domain_rows = options.rows * 4 // 5
        size = write_dataset(home / "data" / "domain" / "cars", domain_rows)
        size += write_dataset(home / "data" / "general" / "talk", options.rows * 2 // 5)
        best_s, cpu_s, peak_kib = float("inf"), float("inf"), 0
        for _ in range(options.repeats):
            start_s = time.perf_counter()
            command = [sys.executable, "-c", CHILD, "mix", "--ratio", "1:4"]
            shown = subprocess.run(command, cwd=home, check=True, capture_output=True, text=True)
            best_s = min(best_s, time.perf_counter() - start_s)
            *_, used_s, used_kib = shown.stdout.split()
            cpu_s = min(cpu_s, float(used_s))
            peak_kib = max(peak_kib, int(used_kib))
        mixed = json.loads((home / "data" / "mix" / "mix.json").read_text())["rows"]
    result = {
        "benchmark": "mix",
        "aim": "one million rows in under 3 s and 1 GB",
        "rows_in_mix": mixed,
        "rows_read": domain_rows + options.rows * 2 // 5,
        "bytes_read": size,
        "seconds": round(best_s, 2),
        "cpu_seconds": round(cpu_s, 2),
        "peak_memory_mb": round(peak_kib / 1000),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=2))
    write_json(options.out, result)


if __name__ == "__main__":
    main()
