"""Peak memory of `adapt convert drivelm` on an annotation file of the real size (400 MB).

    python benchmarks/annotation_memory.py [--raw ../shared/data/drivelm_nuscenes] [--mb 400]

The scenes of the raw folder are repeated under new tokens until the file has that size; all its
frames are indexed and counted, the first `--frames` of them converted. Peak memory is that of the
parent process, which reads the whole file, and of the largest worker.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from adapt.converters import drivelm
from adapt.jsonl import write_json
from adapt.synthetic import write_driving

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "drivelm_nuscenes"
RESULT = Path(__file__).parent / "results" / "annotation_memory.json"
AIM_MB = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, default=None, help="Raw DriveLM folder.")
    parser.add_argument("--mb", type=int, default=400, help="Size of the file.")
    parser.add_argument("--frames", type=int, default=20, help="Frames to convert.")
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or (SAMPLE if SAMPLE.is_dir() else Path(folder) / "raw")
        if not raw.exists():
            write_driving(raw, train_frames=6, val_frames=1, seed=0)
        result = measure(raw, Path(folder), megabytes=arguments.mb, frames=arguments.frames)
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def measure(raw: Path, folder: Path, *, megabytes: int, frames: int) -> dict[str, Any]:
    """Return peak memory and seconds, of the index alone and of a conversion.

    Args:
        raw: Raw folder with a train file and its views.
        folder: For the large file and the dataset.
        megabytes: Size of the large file, in units of 1,000,000 bytes.
        frames: Frames to convert.
    """
    annotations = folder / "train.json"
    units = write_large(raw, annotations, megabytes * 1_000_000)
    index = f"from adapt.converters import drivelm; from pathlib import Path; import sys; \
parts = drivelm.parts(Path('.'), 'train', annotations=Path(sys.argv[1])); \
assert sum(part.units for part in parts) == {units}"
    indexed = peak([sys.executable, "-c", index, str(annotations)])
    questions = sum(part.units for part in drivelm.parts(raw, "train")[:1]) * frames
    command = [sys.executable, "-m", "adapt", "convert", "drivelm", str(raw)]
    command += ["--annotations", str(annotations), "--out", str(folder / "out")]
    converted = peak([*command, "--limit", str(questions)])
    return {
        "file_mb": round(annotations.stat().st_size / 1e6, 1),
        "questions": units,
        "index_peak_mb": indexed["peak_mb"],
        "index_s": indexed["wall_s"],
        "questions_converted": questions,
        "convert_peak_mb": converted["peak_mb"],
        "convert_s": converted["wall_s"],
        "aim_mb": AIM_MB,
    }


def write_large(raw: Path, path: Path, size: int) -> int:
    """Write the raw folder's scenes again and again, under new tokens; return the questions."""
    (source,) = drivelm.sources(raw, "train")
    scenes = list(json.loads(source.read_bytes()).values())
    units = 0
    with path.open("w") as file:
        file.write("{")
        copy = 0
        while file.tell() < size:
            scene = dict(scenes[copy % len(scenes)])
            scene["key_frames"] = {
                f"{copy:08d}frame{index}": frame
                for index, frame in enumerate(scene["key_frames"].values())
            }
            units += sum(
                len(questions)
                for frame in scene["key_frames"].values()
                for questions in frame["QA"].values()
            )
            file.write(f'{"," if copy else ""}"{copy:08d}scene":')
            json.dump(scene, file, indent=4)
            copy += 1
        file.write("}")
    return units


def peak(command: list[str]) -> dict[str, float]:
    """Run a command; return seconds and the peak memory in MB of its largest process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    largest_kb = [0]
    watcher = threading.Thread(target=_watch, args=(process, largest_kb))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(output.decode())
    return {
        "wall_s": round(time.perf_counter() - started, 2),
        "peak_mb": round(largest_kb[0] * 1024 / 1e6, 1),
    }


def _watch(process: subprocess.Popen[bytes], largest_kb: list[int]) -> None:
    while process.poll() is None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and _group(folder) == os.getpgid(0):
                largest_kb[0] = max(largest_kb[0], _peak_kb(folder))
        time.sleep(0.02)


def _group(folder: Path) -> int:
    try:
        return os.getpgid(int(folder.name))
    except ProcessLookupError:
        return -1


def _peak_kb(folder: Path) -> int:
    if int(folder.name) == os.getpid():
        return 0
    try:
        lines = (folder / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else 0


if __name__ == "__main__":
    main()
