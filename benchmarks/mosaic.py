"""Mosaics a second: a plain Pillow loop against `adapt convert drivelm`, on the same frames.

    python benchmarks/mosaic.py [--raw ../shared/data/drivelm_nuscenes] [--frames 120]

The loop is what people write: one process; open, resize, draw, paste, save. `adapt` is the real
command, from its start to the finished dataset. Both run in turns, so that other work on the
machine slows both; CPU seconds are given beside, which it does not. The frames of the raw folder
are repeated under new tokens until there are enough.

PSNR compares every mosaic of the raw folder with Pillow's, before JPEG.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adapt.converters import drivelm
from adapt.coords import NUSCENES
from adapt.jsonl import write_json
from adapt.mosaic import JPEG_QUALITY, LABEL_COLOUR, LABEL_FONT, LABEL_PX, Mosaic
from adapt.records import Record
from adapt.workers import cpu_count

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "drivelm_nuscenes"
RESULT = Path(__file__).parent / "results" / "mosaic.json"
AIM_RATIO = 6.0
AIM_PSNR_DB = 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, default=None, help="Raw DriveLM folder.")
    parser.add_argument("--frames", type=int, default=120, help="Frames a turn.")
    parser.add_argument("--rounds", type=int, default=3, help="Turns each.")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="Processes of adapt.")
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or (SAMPLE if SAMPLE.is_dir() else synthetic_frames(Path(folder)))
        result = measure(
            raw, frames=arguments.frames, rounds=arguments.rounds, workers=arguments.workers
        )
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def measure(raw: Path, *, frames: int, rounds: int = 3, workers: int = 2) -> dict[str, Any]:
    """Return frames a second of both, their ratio, and the PSNR of the raw folder's frames.

    Args:
        raw: A raw DriveLM folder with a train file; its views are read where they are.
        frames: Frames a turn.
        rounds: Turns each; the fastest counts.
        workers: Processes of `adapt convert`.
    """
    mosaics = frames_of(raw)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        annotations = repeat_frames(raw, folder / "train.json", frames)
        plain, ours = [], []
        for turn in range(rounds):
            repeated = [mosaics[index % len(mosaics)] for index in range(frames)]
            plain.append(timed(lambda: pillow_loop(repeated, folder / "pillow")))  # noqa: B023
            out = folder / f"out{turn}"
            ours.append(timed(lambda: run_adapt(raw, annotations, out, workers)))  # noqa: B023
        # Worker processes are nobody's children: CPU time is taken of a run without them.
        alone = [timed(lambda: run_adapt(raw, annotations, folder / "alone", 1))]
    psnr_db = [psnr(mosaic.pixels(), pillow_mosaic(mosaic)) for mosaic in mosaics]
    plain_s, ours_s = (min(run["wall_s"] for run in runs) for runs in (plain, ours))
    plain_cpu_s, alone_cpu_s = (min(run["cpu_s"] for run in runs) for runs in (plain, alone))
    return {
        "frames": frames,
        "distinct_frames": len(mosaics),
        "rounds": rounds,
        "workers": workers,
        "cores": cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "pillow_frames_per_s": round(frames / plain_s, 2),
        "adapt_frames_per_s": round(frames / ours_s, 2),
        "ratio": round(plain_s / ours_s, 2),
        "aim_ratio": AIM_RATIO,
        "pillow_cpu_ms_a_frame": round(plain_cpu_s / frames * 1000, 1),
        "adapt_cpu_ms_a_frame": round(alone_cpu_s / frames * 1000, 1),
        "ratio_by_cpu_time": round(plain_cpu_s / alone_cpu_s * workers, 2),
        "psnr_db_min": round(min(psnr_db), 2),
        "psnr_db_mean": round(sum(psnr_db) / len(psnr_db), 2),
        "aim_psnr_db": AIM_PSNR_DB,
    }


def timed(work: Callable[[], None]) -> dict[str, float]:
    """Return wall and CPU seconds of `work`, its child processes included."""
    started, cpu = time.perf_counter(), cpu_seconds()
    work()
    return {"wall_s": time.perf_counter() - started, "cpu_s": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def frames_of(raw: Path) -> list[Mosaic]:
    """Return the mosaic of every frame of a raw folder's train file."""
    found: dict[str, Mosaic] = {}
    for result in drivelm.convert(raw, "train"):
        if isinstance(result, Record):
            mosaic = result.image[0]
            assert isinstance(mosaic, Mosaic)
            found[mosaic.file] = mosaic
    return list(found.values())


def repeat_frames(raw: Path, path: Path, frames: int) -> Path:
    """Write the annotations of a raw folder again under new tokens, `frames` frames in all."""
    (source,) = drivelm.sources(raw, "train")
    originals = [
        frame
        for scene in json.loads(source.read_bytes()).values()
        for frame in scene["key_frames"].values()
    ]
    key_frames = {f"frame{index:06d}": originals[index % len(originals)] for index in range(frames)}
    write_json(path, {"scene": {"key_frames": key_frames}})
    return path


def run_adapt(raw: Path, annotations: Path, out: Path, workers: int) -> None:
    command = [sys.executable, "-m", "adapt", "convert", "drivelm", str(raw)]
    command += ["--annotations", str(annotations), "--out", str(out), "--workers", str(workers)]
    subprocess.run(command, check=True, capture_output=True)


def pillow_loop(mosaics: list[Mosaic], out: Path) -> None:
    """Make and save mosaics one after another, the plain way."""
    out.mkdir(exist_ok=True)
    for index, mosaic in enumerate(mosaics):
        pillow_picture(mosaic).save(out / f"{index:06d}.jpg", quality=JPEG_QUALITY)


def pillow_mosaic(mosaic: Mosaic) -> np.ndarray:
    return np.asarray(pillow_picture(mosaic))


def pillow_picture(mosaic: Mosaic) -> Image.Image:
    """Return what the plain loop makes of a frame, before it is saved."""
    font = ImageFont.truetype(str(LABEL_FONT), LABEL_PX)
    files = dict(mosaic.views)
    canvas = Image.new("RGB", mosaic.size)
    for row in NUSCENES.cameras:
        for camera in row:
            view = Image.open(files[camera]).convert("RGB")
            cell = view.resize((NUSCENES.cell_width, NUSCENES.cell_height))
            ImageDraw.Draw(cell).text((0, 0), camera, fill=LABEL_COLOUR, font=font)
            canvas.paste(cell, NUSCENES.origin(camera))
    return canvas


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = float(np.mean((found.astype(np.float32) - expected) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def synthetic_frames(folder: Path) -> Path:
    """Write frames rendered by the demo, for a machine without the real ones."""
    from adapt.synthetic import write_driving

    write_driving(folder, train_frames=6, val_frames=1, seed=0)
    return folder


if __name__ == "__main__":
    main()
