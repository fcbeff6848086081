"""Steps of the real engine in every ZeRO stage; run in-process, and as ranks by torchrun.

python -m torch.distributed.run --nproc-per-node 2 engine_cases.py OUT.json FOLDER
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from adapt.models.handle import ModelHandle, open_model
from adapt.quiet import quiet_training
from adapt.recipe import Recipe
from adapt.records import Message
from adapt.train.collate import Filler, LoadedRecord, Pack, collate
from adapt.train.engine import build_engine
from adapt.train.loss import num_chunks
from adapt.train.place import Place, find_place, joined
from adapt.train.weights import gather_weights

STEPS = 2
PACKS_PER_STEP = 4
# Few, so that ranks differ in the chunks that their own packs would need.
CHUNK_TOKENS = 5
CASES = {
    "zero1": ("zero1", "full"),
    "zero2": ("zero2", "full"),
    "zero3": ("sharded.json", "full"),
    "freeze-vit": ("zero2", "freeze-vit"),
    "lora": ("zero1", "lora"),
    "zero3 lora": ("sharded.json", "lora"),
    "offload": ("zero2-offload", "full"),
}


def load_record(handle: ModelHandle, seed: int, question: str, answer: str, tiles: int):
    turns = [Message("human", "<image>" * bool(tiles) + question), Message("gpt", answer)]
    sample = handle.encode(turns, [tiles] if tiles else [])
    pixels = np.random.default_rng(seed).integers(0, 256, (tiles, 3, 448, 448), dtype=np.uint8)
    return LoadedRecord(np.array(sample.input_ids), np.array(sample.labels), pixels)


def make_packs(handle: ModelHandle) -> list[Pack]:
    """Packs of unlike size: two records, text alone, one long answer, none at all."""
    filler = Filler(handle.image_token_id, handle.tokens_per_tile, handle.tile_px)
    records = [
        load_record(handle, 0, "What is this?", "A red car on the left.", 2),
        load_record(handle, 1, "How many?", "Four", 1),
        load_record(handle, 2, "Only words.", "Yes, no.", 0),
        load_record(handle, 3, "And here?", "A long answer of many, many words, it seems.", 1),
    ]
    groups = [records[:2], records[2:3], records[3:], []]
    return [collate(group, "square", filler) for group in groups]


def make_recipe(method: str, deepspeed: str, *, accumulation: int) -> Recipe:
    return Recipe(
        name="case",
        model="tiny",
        method=method,
        deepspeed=deepspeed,
        dtype="fp32",
        gradient_accumulation=accumulation,
        drop_path=0.0,
        learning_rate=1e-3,
        # Adam divides by the gradient's size: without this, noise in tiny ones would be steps.
        eps=1e-2,
    )


def run_case(place: Place, device: torch.device, method: str, deepspeed: str) -> dict:
    """Make two steps; returns losses, gradient norms and, on rank 0, a print of the weights."""
    handle = open_model("tiny")
    packs = make_packs(handle)
    accumulation = PACKS_PER_STEP // place.world_size
    engine = build_engine(handle, make_recipe(method, deepspeed, accumulation=accumulation), device)
    weight = sum(float(pack.weights.double().sum()) for pack in packs)
    losses, norms = [], []
    for _ in range(STEPS):
        engine.set_learning_rate(1e-3)
        loss = torch.zeros(())
        for micro in range(accumulation):
            together = packs[micro * place.world_size : (micro + 1) * place.world_size]
            chunks = num_chunks(max(len(pack.targets) for pack in together), CHUNK_TOKENS)
            torch.manual_seed(micro * place.world_size + place.rank)
            loss += engine.accumulate(together[place.rank], scale=1 / weight, chunks=chunks)
        torch.distributed.all_reduce(loss)
        losses.append(float(loss))
        norms.append(engine.grad_norm())
    weights = gather_weights(engine)
    engine.deepspeed.destroy()
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: value.double().norm().item() for name, value in weights.items()},
    }


def run_cases(place: Place, folder: Path) -> dict[str, dict]:
    with joined(place) as device, quiet_training():
        results = {}
        for name, (deepspeed, method) in CASES.items():
            path = folder / deepspeed
            results[name] = run_case(
                place, device, method, str(path) if path.exists() else deepspeed
            )
        return results


def write_sharded(folder: Path) -> None:
    """Write ZeRO-3 settings that keep no parameter whole, however small."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}
    (folder / "sharded.json").write_text(json.dumps({"zero_optimization": zero}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = find_place(os.environ)
    assert found is not None
    cases = run_cases(found, Path(sys.argv[2]))
    if found.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(cases))
