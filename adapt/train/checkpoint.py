"""Checkpoints: everything a run needs to go on as if it had never stopped.

    RUN/checkpoints/
        latest               name of the newest one, written when it is whole
        step-20/
            state.json       step, epoch, pack, plan, ranks
            model/           safetensors, or adapter/
            deepspeed/       DeepSpeed's own files: weights, optimiser, one file a rank

DeepSpeed's files are pickles, which it offers no way around: load only checkpoints you trust. All
else is safetensors and JSON. A checkpoint is written beside its place and renamed when every rank
is done. Random numbers need no file: they are drawn anew for each pack from seed, epoch and pack.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch.distributed as dist

from adapt.errors import CheckpointError, UsageError
from adapt.jsonl import write_bytes, write_json
from adapt.run_paths import LATEST
from adapt.train.disk import disk_faults_named
from adapt.train.engine import Engine
from adapt.train.run_state import STATE, RunState
from adapt.train.weights import gather_weights, write_weights

if TYPE_CHECKING:
    from adapt.models.handle import ModelHandle

_TAG = "deepspeed"


def save_checkpoint(
    folder: Path, engine: Engine, state: RunState, handle: ModelHandle, *, keep: int
) -> Path:
    """Write a checkpoint; all ranks must call it.

    Args:
        folder: RUN/checkpoints.
        engine: What to save.
        state: Where the run stands.
        handle: Of the base.
        keep: Checkpoints kept, this one included.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    place = folder / f"step-{state.step}"
    temporary = folder / f".step-{state.step}.tmp"
    first = dist.get_rank() == 0
    try:
        with disk_faults_named(place):
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            dist.barrier()
            engine.deepspeed.save_checkpoint(
                str(temporary), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
            )
            weights = gather_weights(engine)
            if first:
                name = "model" if engine.adapter is None else "adapter"
                write_weights(temporary / name, weights, engine, handle)
                write_json(temporary / STATE, msgspec.to_builtins(state))
                _put_in_place(temporary, place)
                _remove_old(folder, keep)
            dist.barrier()
    finally:
        if first and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    return place


def restore(checkpoint: Path, engine: Engine, state: RunState, *, plan: str) -> None:
    """Bring a fresh engine to where a checkpoint stood; all ranks must call it.

    Raises:
        UsageError: The plan or the number of ranks is another one.
        CheckpointError: DeepSpeed does not accept it.
    """
    if state.plan != plan:
        raise UsageError(
            f"{checkpoint}: was trained on plan {state.plan[:12]}, the plan is now {plan[:12]}: "
            f"the mix or the recipe changed; start another run with --set out=FOLDER"
        )
    if state.ranks != dist.get_world_size():
        raise UsageError(
            f"{checkpoint}: was written by {state.ranks} processes, now there are "
            f"{dist.get_world_size()}; resume with as many (--nproc {state.ranks})"
        )
    loaded, _ = engine.deepspeed.load_checkpoint(
        str(checkpoint), tag=_TAG, load_module_strict=False
    )
    if loaded is None:
        raise CheckpointError(f"{checkpoint}: DeepSpeed finds no state in it; it is not whole")


def _put_in_place(temporary: Path, place: Path) -> None:
    """Make a checkpoint that is whole the newest one."""
    for script in temporary.glob("*.py"):
        # DeepSpeed's, to unpickle the weights, which lie beside as safetensors.
        script.unlink()
    _sync(temporary)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
    write_bytes(place.parent / LATEST, f"{place.name}\n".encode())


def _sync(folder: Path) -> None:
    """Flush every file below `folder` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what a kill left; a user's own names stay."""
    steps = {
        int(path.name.removeprefix("step-")): path
        for path in folder.glob("step-*")
        if re.fullmatch(r"step-\d+", path.name)
    }
    for step in sorted(steps)[:-keep]:
        # Renamed first: a checkpoint with its name is always whole.
        steps[step].rename(folder / f".step-{step}.old")
    for left in [*folder.glob(".step-*.old"), *folder.glob(".step-*.tmp")]:
        shutil.rmtree(left)
