"""Where a run stands: what a checkpoint says of itself, and which one is the newest.

RUN/checkpoints/latest             step-20
RUN/checkpoints/step-20/state.json {"step": 20, "epoch": 0, "pack": 160, "plan": "5f1c...", ...}
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from adapt.errors import CheckpointError
from adapt.jsonl import read_bytes
from adapt.run_paths import LATEST

FORMAT = 1
STATE = "state.json"


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands.

    Args:
        step: Optimiser steps done.
        epoch: Epoch of the next step.
        pack: Place in the epoch's pack order where the next step begins.
        plan: Hash of the plan.
        ranks: How many wrote it, and must read it.
        lost: Rows of the mix that could not be read so far.
        format: Of this file.
    """

    step: int
    epoch: int
    pack: int
    plan: str
    ranks: int
    lost: tuple[int, ...] = ()
    format: int = FORMAT


def find_latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of RUN/checkpoints, None when there is none.

    Raises:
        CheckpointError: The marker names a checkpoint that is not there.
    """
    marker = folder / LATEST
    if not marker.exists():
        return None
    path = folder / read_bytes(marker).decode(errors="replace").strip()
    if not (path / STATE).is_file():
        others = ", ".join(sorted(p.name for p in folder.glob("step-*"))) or "none"
        raise CheckpointError(
            f"{marker}: names {path.name}, which is not there or not whole; write one that is "
            f"into the marker (there: {others})"
        )
    return path


def read_state(checkpoint: Path) -> RunState:
    """Return where the run stood at a checkpoint.

    Raises:
        CheckpointError: Its state is damaged or of another version.
    """
    path = checkpoint / STATE
    try:
        state = msgspec.json.decode(read_bytes(path), type=RunState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}; go on from an older checkpoint") from error
    if state.format != FORMAT:
        raise CheckpointError(f"{path}: format {state.format}, this version reads {FORMAT}")
    return state
