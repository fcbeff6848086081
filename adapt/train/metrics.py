"""What a run tells: metrics.jsonl, TensorBoard events, a progress bar. Rank 0 only.

    {"step": 12, "epoch": 0, "loss": 1.83, "lr": 9.8e-06, "grad_norm": 2.1, "tokens": 131072,
     "supervised": 5120, "tiles": 384, "tokens_per_s": 45210.3, "s": 2.9}

A line stands for the steps since the line before: the loss is their mean, counts and seconds are
sums, the rest is that of the last step. A checkpoint ends a line, so that a resumed run, which
first takes back every line after its checkpoint, writes the lines of a run that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import orjson

from adapt.jsonl import disk_fault, write_bytes
from adapt.progress import Advance, progress
from adapt.run_paths import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimiser step, all ranks together.

    Args:
        step: Optimiser steps done, this one included.
        epoch: Epoch it belongs to, from 0.
        loss: Weighted mean cross-entropy, in nats.
        lr: Learning rate.
        grad_norm: Norm of the gradient before clipping.
        tokens: Tokens of its packs.
        supervised: Supervised tokens among them.
        tiles: Tiles of its packs.
        s: Seconds it took.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    supervised: int
    tiles: int
    s: float


class Metrics:
    """Writes steps where they are looked for; see `open_metrics`."""

    def __init__(self, path: Path, events: SummaryWriter | None, advance: Advance) -> None:
        self._path, self._events, self._advance = path, events, advance
        self._waiting: list[StepMetrics] = []

    def add(self, step: StepMetrics, *, flush: bool) -> None:
        """Take a step; with `flush` write the line of all steps since the last one."""
        self._waiting.append(step)
        self._advance(1, note=f"loss {step.loss:.4f} lr {step.lr:.2e}")
        if flush:
            self._write(summarise(self._waiting))
            self._waiting.clear()

    def _write(self, line: dict[str, float]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            raise disk_fault(error, self._path) from error
        if self._events is not None:
            for name in ("loss", "lr", "grad_norm", "tokens_per_s"):
                self._events.add_scalar(f"train/{name}", line[name], int(line["step"]))


def summarise(steps: list[StepMetrics]) -> dict[str, float]:
    """Return the line of metrics.jsonl for consecutive steps."""
    last = steps[-1]
    seconds = sum(step.s for step in steps)
    tokens = sum(step.tokens for step in steps)
    return {
        "step": last.step,
        "epoch": last.epoch,
        "loss": sum(step.loss for step in steps) / len(steps),
        "lr": last.lr,
        "grad_norm": last.grad_norm,
        "tokens": tokens,
        "supervised": sum(step.supervised for step in steps),
        "tiles": sum(step.tiles for step in steps),
        "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
        "s": round(seconds, 4),
    }


@contextmanager
def open_metrics(run: RunFolder, *, start: int, total: int, tensorboard: bool) -> Iterator[Metrics]:
    """Open the records of a run that goes on from step `start` of `total`.

    Args:
        run: Where they are written.
        start: Steps done; what was written about later ones is taken back.
        total: Steps of the whole run.
        tensorboard: Write events as well.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    keep_until(run.metrics, start)
    events = _open_events(run.tensorboard, start) if tensorboard else None
    try:
        with progress("train", total, "steps", done=start) as advance:
            yield Metrics(run.metrics, events, advance)
    finally:
        if events is not None:
            events.close()


def keep_until(path: Path, step: int) -> None:
    """Take back the lines of a JSONL file about steps after `step`, and a cut-off last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if msgspec.json.decode(line, type=_Stepped).step > step or not line.endswith(b"\n"):
                break
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Cut off when the run was killed: nothing whole comes after it.
            break
        kept.append(line)
    write_bytes(path, b"".join(kept))


class _Stepped(msgspec.Struct):
    step: int


def _open_events(folder: Path, start: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(folder), purge_step=start + 1)
