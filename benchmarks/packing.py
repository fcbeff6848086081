"""How full packs get, against the reference's way and what is possible, and how fast plans are.

    python benchmarks/packing.py [--records 20000] [--planned 100000]

Records of several kinds of data, drawn with a seed: tiles from picture sizes by `adapt.tiling`,
256 tokens a tile, text lengths log-normal. `first_fit_20` packs as the reference does: the first of
at most 20 waiting packs with room, fullest in tiles first; one more pack sends off the fullest.
`possible` is the fill of `least_packs`, which no packing can exceed. Then a mix of DriveLM-like
records is planned with the tokenizer of `tiny`. Times are of the process (CPU), all threads.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import io
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from adapt.jsonl import write_json
from adapt.mix import MixOptions, run_mix
from adapt.models.handle import open_model
from adapt.packing import Limits, least_packs, pack_records
from adapt.plan import build_plan
from adapt.recipe import Recipe
from adapt.records import Message, RecordLine, Source
from adapt.tiling import grids_for

RESULT = Path(__file__).parent / "results" / "packing.json"
TOKENS_PER_TILE = 256
LIMITS = Limits(16384, 48)
WAITING_PACKS = 20
Rng = np.random.Generator


def pictures(rng: Rng, sizes: list[tuple[int, int]], count: int) -> np.ndarray:
    """Return [count] tiles of pictures of these sizes; (0, 0) is a record without a picture."""
    chosen = np.array(sizes)[rng.integers(0, len(sizes), count)]
    safe = np.maximum(chosen, 1)
    grids = grids_for(safe[:, 0], safe[:, 1], min_tiles=1, max_tiles=12)
    tiles = grids[:, 0] * grids[:, 1]
    return np.where(chosen[:, 0] == 0, 0, tiles + (tiles > 1))


def text(rng: Rng, typical: int, spread: float, count: int) -> np.ndarray:
    """Return [count] tokens of text around `typical`."""
    return np.clip(rng.lognormal(np.log(typical), spread, count), 30, 4000).astype(int)


def general(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = [(640, 480)] * 2 + [(640, 427), (480, 640), (427, 640), (800, 1100), (336, 336)]
    return text(rng, 270, 0.8, count), pictures(rng, [*sizes, (1024, 1024), (0, 0)], count)


def mosaics(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    return text(rng, 150, 0.35, count), np.full(count, 13)


def medical(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = [(512, 512), (700, 600), (1200, 900), (320, 240), (1500, 1500), (600, 800)]
    return text(rng, 140, 0.5, count), pictures(rng, sizes, count)


def satellite(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    return text(rng, 90, 0.3, count), pictures(rng, [(256, 256), (512, 512), (600, 600)], count)


def frames(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    return text(rng, 150, 0.3, count), np.full(count, 8)


def documents(rng: Rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    words, tiles = general(rng, count)
    return words + text(rng, 900, 0.7, count), tiles


KINDS: dict[str, tuple[Callable[..., Any], float]] = {
    "drivelm 1:4": (mosaics, 0.8),
    "bddx 2:1, 8 frames": (frames, 1 / 3),
    "medical 1:1": (medical, 0.5),
    "remote sensing": (satellite, 0.7),
    "long answers": (documents, 0.5),
}


def draw(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and tiles of a mix of one kind of domain data with general data, shuffled."""
    rng = np.random.Generator(np.random.PCG64(0))
    domain, share = KINDS[kind]
    side = round(share * count)
    parts = [domain(rng, side), general(rng, count - side)]
    words, tiles = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = rng.permutation(count)
    return (words + TOKENS_PER_TILE * tiles)[order], tiles[order]


def first_fit_20(tokens: np.ndarray, tiles: np.ndarray, limits: Limits) -> int:
    """Return the packs that the reference's packer needs."""
    waiting: list[tuple[int, int]] = []
    sent = 0
    for words, cells in zip(tokens.tolist(), tiles.tolist(), strict=True):
        pack = (cells, words)
        for place, (held, length) in enumerate(waiting):
            if held + cells <= limits.tiles and length + words <= limits.tokens:
                pack = (held + cells, length + words)
                waiting.pop(place)
                break
        if pack[0] == limits.tiles or pack[1] == limits.tokens:
            sent += 1
            continue
        bisect.insort(waiting, pack, key=lambda one: -one[0])
        if len(waiting) > WAITING_PACKS:
            waiting.pop(0)
            sent += 1
    return sent + len(waiting)


def measure_packing(kind: str, count: int, limits: Limits) -> dict[str, Any]:
    tokens, tiles = draw(kind, count)
    start_s = time.process_time()
    packs = pack_records(tokens, tiles, limits, seed=0).num_packs
    elapsed_s = time.process_time() - start_s
    full = tokens.sum() / limits.tokens
    return {
        "data": kind,
        "max_pack_tiles": limits.tiles,
        "fill": round(float(full / packs), 3),
        "first_fit_20": round(float(full / first_fit_20(tokens, tiles, limits)), 3),
        "possible": round(float(full / least_packs(tokens, tiles, limits)), 3),
        "records_per_cpu_s": round(count / elapsed_s),
    }


def measure_plan(count: int) -> dict[str, Any]:
    rng = np.random.Generator(np.random.PCG64(0))
    words = ["car", "light", "left", "right", "stops", "moves", "green", "because", "why"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        with (folder / "data" / "train.jsonl").open("wb") as file:
            for row in range(count):
                question, answer = (
                    " ".join(rng.choice(words, rng.integers(10, 60))) for _ in range(2)
                )
                turns = [Message("human", f"<image>\n{question}"), Message("gpt", answer)]
                image = [f"{row // 50}.jpg"]
                source = Source("data", "train", str(row))
                one = RecordLine(
                    f"data/train/{row}", image, [2688], [896], turns, "multiview", source, ""
                )
                file.write(msgspec.json.encode(one) + b"\n")
        options = MixOptions(
            ratio="0:1",
            fraction_of_general=None,
            domain=(folder / "data",),
            general=(),
            take=(),
            repeat=(),
            allow_repeat=False,
            seed=0,
            out=folder / "mix",
        )
        handle = open_model("tiny")
        with contextlib.redirect_stdout(io.StringIO()):
            run_mix(options)
        assert handle.tokenizer is not None
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        plan = build_plan(Recipe(name="bench", model="tiny", mix=folder / "mix"), handle)
        cpu_s, wall_s = time.process_time() - start_cpu_s, time.perf_counter() - start_s
    assert plan.num_records == count
    return {
        "records": count,
        "packs": plan.num_packs,
        "records_per_cpu_s": round(count / cpu_s),
        "records_per_s": round(count / wall_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    options = parser.parse_args()
    rows = [measure_packing(kind, options.records, LIMITS) for kind in KINDS]
    # Four mosaics of 13 tiles in a pack in place of three.
    rows.append(measure_packing("drivelm 1:4", options.records, Limits(LIMITS.tokens, 52)))
    result = {
        "benchmark": "packing",
        "records": options.records,
        "max_pack_tokens": LIMITS.tokens,
        "python": platform.python_version(),
        "cpu": platform.machine(),
        "packing": rows,
        "plan": measure_plan(options.planned),
    }
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    write_json(options.out, result)


if __name__ == "__main__":
    main()
