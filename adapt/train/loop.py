"""The loop: step after step from where the run stands to its end.

each step:  its packs, and which of them this rank runs    schedule, plan
            those packs, read ahead                        loader, dataset
            forward, backward, update                      engine
            loss, lost records, wish to stop               one small all-reduce
            a line, a checkpoint                           what `after` does with it
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from adapt.errors import CheckFailed, RecordError
from adapt.reading_ahead import read_ahead
from adapt.train.dataset import Lost, ReadPack, Slot
from adapt.train.engine import Engine
from adapt.train.loss import Reduction, num_chunks, token_weight
from adapt.train.metrics import StepMetrics
from adapt.train.schedule import Schedule

if TYPE_CHECKING:
    from adapt.plan import Plan
    from adapt.recipe import Recipe

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackTotals:
    """What the plan says of each pack: [packs] arrays."""

    weight: npt.NDArray[np.float64]
    supervised: Integers
    tokens: Integers
    tiles: Integers


def pack_totals(plan: Plan, reduction: Reduction) -> PackTotals:
    """Sum the planned records of each pack; `weight` is that of all supervised tokens."""
    weights = np.asarray(
        [count * token_weight(count, reduction) for count in plan.column("supervised").tolist()],
        dtype=np.float64,
    )
    return PackTotals(
        weight=np.bincount(plan.column("pack"), weights, plan.num_packs).astype(np.float64),
        supervised=plan.pack_sums("supervised"),
        tokens=plan.pack_sums("tokens"),
        tiles=plan.pack_sums("tiles"),
    )


@dataclass(frozen=True, slots=True)
class StepShare:
    """A step: the packs of all ranks, and what one rank runs of them.

    Args:
        epoch: Epoch of the step.
        packs: Packs of all ranks.
        slots: Packs of this rank, one a micro-step; empty ones where there are too few.
        chunks: Chunks of the cross-entropy in each micro-step, the same on all ranks.
    """

    epoch: int
    packs: Integers
    slots: tuple[Slot, ...]
    chunks: tuple[int, ...]


@dataclass(kw_only=True)
class Sharing:
    """Which packs a rank runs in each step.

    Args:
        schedule: Of the run.
        order: Epoch to its order of packs.
        supervised: [packs] supervised tokens of each pack.
        rank: This rank.
        ranks: How many there are.
        chunk_tokens: Supervised tokens whose logits may exist at once.
    """

    schedule: Schedule
    order: Callable[[int], Integers]
    supervised: Integers
    rank: int
    ranks: int
    chunk_tokens: int
    _orders: dict[int, Integers] = field(default_factory=dict)

    def step(self, step: int) -> StepShare:
        """Return the share of a step, counted from 0."""
        epoch, places = self.schedule.places(step)
        if epoch not in self._orders:
            self._orders = {epoch: self.order(epoch)}
        packs = self._orders[epoch][places.start : places.stop]
        slots, chunks = [], []
        for first in range(0, self.schedule.packs_per_step, self.ranks):
            together = packs[first : first + self.ranks]
            mine = int(together[self.rank]) if self.rank < len(together) else None
            slots.append(Slot(epoch, mine))
            most = int(self.supervised[together].max(initial=0))
            chunks.append(num_chunks(most, self.chunk_tokens))
        return StepShare(epoch, packs, tuple(slots), tuple(chunks))


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step that all ranks have made.

    Args:
        metrics: Of the step.
        lost: Rows of the mix that could not be read so far, over all ranks.
        newly_lost: Records found unreadable in this step.
        stop: Whether some rank was asked to stop.
    """

    metrics: StepMetrics
    lost: frozenset[int]
    newly_lost: tuple[Lost, ...]
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the loop works with."""

    recipe: Recipe
    schedule: Schedule
    sharing: Sharing
    totals: PackTotals
    engine: Engine
    read: Callable[[Slot], ReadPack]


def run_steps(
    work: Work, *, start: int, lost: frozenset[int], stopping: Callable[[], bool]
) -> Iterator[StepDone]:
    """Make the steps from `start` to the end of the run; yields after each.

    Args:
        work: What with.
        start: Steps done before.
        lost: Rows of the mix found unreadable before.
        stopping: Whether this process was asked to stop.

    Raises:
        CheckFailed: The loss is no longer a number.
        RecordError: More records are unreadable than the recipe allows.
    """
    total = work.schedule.total_steps
    slots = (slot for step in range(start, total) for slot in work.sharing.step(step).slots)
    packs = read_ahead(work.read, slots, workers=work.recipe.data_workers)
    with closing(packs):
        for step in range(start, total):
            done = _run_step(work, step, packs, lost, stopping)
            lost = done.lost
            yield done


def _run_step(
    work: Work,
    step: int,
    packs: Iterator[ReadPack],
    lost: frozenset[int],
    stopping: Callable[[], bool],
) -> StepDone:
    begin = time.monotonic()
    share = work.sharing.step(step)
    rate = work.schedule.learning_rate(step)
    work.engine.set_learning_rate(rate)
    weight = math.fsum(work.totals.weight[share.packs])
    loss = torch.zeros((), device=work.engine.device)
    newly_lost: list[Lost] = []
    for slot, chunks in zip(share.slots, share.chunks, strict=True):
        read = next(packs)
        newly_lost += [one for one in read.lost if one.mix_index not in lost]
        torch.manual_seed(pack_seed(work.recipe.seed, slot))
        # A step of records without any supervised token has weight 0 and no gradient.
        loss += work.engine.accumulate(read.pack, scale=1 / weight if weight else 0, chunks=chunks)
    loss_value, num_lost, num_stopping = _sum_over_ranks(
        [float(loss), len(newly_lost), stopping()], work.engine.device
    )
    if not math.isfinite(loss_value):
        raise CheckFailed(
            f"step {step + 1}: the loss is {loss_value}; lower learning_rate "
            f"(now {work.recipe.learning_rate:g}), and start again from an earlier checkpoint"
        )
    everywhere = _gather(newly_lost) if num_lost else ()
    lost = allowed_losses(lost | {one.mix_index for one in everywhere}, everywhere, work.recipe)
    metrics = StepMetrics(
        step=step + 1,
        epoch=share.epoch,
        loss=loss_value,
        lr=rate,
        grad_norm=work.engine.grad_norm(),
        tokens=int(work.totals.tokens[share.packs].sum()),
        supervised=int(work.totals.supervised[share.packs].sum()),
        tiles=int(work.totals.tiles[share.packs].sum()),
        s=time.monotonic() - begin,
    )
    return StepDone(metrics, lost, everywhere, stop=num_stopping > 0)


def pack_seed(seed: int, slot: Slot) -> int:
    """Return the seed of dropout and drop path for a pack: the same wherever it runs."""
    key = f"{seed},{slot.epoch},{slot.pack}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1


def _sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    result: list[float] = sums.tolist()
    return result


def _gather(mine: Sequence[Lost]) -> tuple[Lost, ...]:
    found: list[list[Lost]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, list(mine))
    return tuple({one.mix_index: one for part in found for one in part}.values())


def allowed_losses(lost: frozenset[int], newly: Sequence[Lost], recipe: Recipe) -> frozenset[int]:
    """Return the rows of the mix that are lost, if the recipe allows as many.

    Raises:
        RecordError: It does not.
    """
    if len(lost) > recipe.max_unreadable:
        worst = newly[-1]
        raise RecordError(
            f"{len(lost)} records cannot be read, max_unreadable is {recipe.max_unreadable}; "
            f"the last is {worst.id} (row {worst.mix_index} of the mix): {worst.why}"
        )
    return lost
