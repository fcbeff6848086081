"""Memory and time of `adapt models import` and `export`: the goldens, and a 2B-sized checkpoint.

    python benchmarks/bridge.py [--preset mini-internvl2-2b] [--scratch /tmp]

The large checkpoint has random weights in the original layout (bfloat16, several shards), written
tensor by tensor. Each command runs in a process of its own, its logits comparison included; peak
memory is what the kernel says of that process, mapped files included. Needs 14 GB of scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from adapt.jsonl import read_json, write_json
from adapt.models.conversion import native_shapes
from adapt.models.known_layouts import layout_of_native
from adapt.models.presets import load_preset
from adapt.models.shards import TensorSpec, open_checkpoint, write_checkpoint

GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens" / "checkpoints"
RESULT = Path(__file__).parent / "results" / "bridge.json"
AIM_PEAK_GB = 8.0
IMAGE_TOKEN_ID = 92546
SHARD_BYTES = 10**9
SUMMARY = r"(\d+) tensors in, (\d+) out.*largest logit difference (\S+)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mini-internvl2-2b", help="Sizes of the large one.")
    parser.add_argument("--scratch", type=Path, default=None, help="Folder with 14 GB free.")
    parser.add_argument("--skip-large", action="store_true", help="Only the goldens.")
    parser.add_argument("--out", type=Path, default=RESULT, help="Result file.")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        scratch = Path(temporary)
        for golden in sorted(GOLDENS.iterdir()) if GOLDENS.is_dir() else []:
            token = read_json(golden / "expected.json")["image_token_id"]
            rows += round_trip(f"golden {golden.name}", golden, token, scratch)
        if not options.skip_large:
            source = scratch / "source"
            write_random(options.preset, source)
            rows += round_trip(f"random {options.preset}", source, IMAGE_TOKEN_ID, scratch)
    result = {
        "benchmark": "bridge",
        "command": f"python benchmarks/bridge.py --preset {options.preset}",
        "aim_peak_gb": AIM_PEAK_GB,
        "device": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
        "rows": rows,
    }
    write_json(options.out, result)
    print(json.dumps(result, indent=2))


def round_trip(name: str, source: Path, image_token_id: int, scratch: Path) -> list[dict[str, Any]]:
    """Import and export a checkpoint; return a row of figures for each."""
    native, back = scratch / "native", scratch / "back"
    token = ["--image-token-id", str(image_token_id)]
    imported = run(["import", str(source), "--out", str(native), *token])
    exported = run(["export", str(native), "--out", str(back)])
    exported["identical"] = is_identical(source, back)
    shutil.rmtree(native)
    shutil.rmtree(back)
    return [
        {"checkpoint": name, "command": "import", **imported},
        {"checkpoint": name, "command": "export", **exported},
    ]


def run(arguments: list[str]) -> dict[str, Any]:
    """Run `adapt models ...`; return its seconds, its peak memory and what it says of itself."""
    command = [sys.executable, "-m", "adapt", "models", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    found = re.search(SUMMARY, output)
    assert found is not None, output
    return {
        "tensors_in": int(found[1]),
        "tensors_out": int(found[2]),
        "largest_logit_difference": float(found[3]),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def is_identical(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit, and the same config."""
    a, b = open_checkpoint(one), open_checkpoint(other)
    same_files = read_json(one / "config.json") == read_json(other / "config.json")
    return same_files and a.specs == b.specs and all(a.read(n).equal(b.read(n)) for n in a.specs)


def write_random(preset_name: str, folder: Path) -> None:
    """Write a checkpoint of a preset's sizes in the original layout, random, in bfloat16."""
    preset = load_preset(preset_name)
    config = preset.config(IMAGE_TOKEN_ID)
    layout = layout_of_native(config.to_dict())
    pairs = layout.pairs(config)
    shapes = native_shapes(layout, config, pairs)
    specs = sorted(
        (
            TensorSpec(
                pair.original, "BF16", pair.cut.joined_shape([shapes[name] for name in pair.native])
            )
            for pair in pairs
        ),
        key=lambda spec: spec.place,
    )
    folder.mkdir()
    write_checkpoint(folder, specs, random_tensors(specs), max_shard_bytes=SHARD_BYTES)
    fields = layout.export_config(config)
    write_json(folder / "config.json", {**fields, "template": preset.template})


def random_tensors(specs: list[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights as a fresh model has them: norms near 1, the rest near 0."""
    random = torch.Generator().manual_seed(0)
    for spec in specs:
        tensor = torch.empty(spec.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)
        yield spec.name, tensor + 1 if "norm" in spec.name and "bias" not in spec.name else tensor


if __name__ == "__main__":
    main()
