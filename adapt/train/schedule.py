"""The schedule: which packs make an optimiser step, and its learning rate.

    epoch 0: pack order Plan.order(0), cut into steps of `packs_per_step`
    epoch 1: pack order Plan.order(1), ...

A step is the same set of packs however they are shared out: of a step's packs, number j goes to
rank j % world_size as its micro-step j // world_size. The last step of an epoch may lack packs; a
rank without one runs an empty pack of weight 0, so that all ranks always make the same passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapt.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The steps of a run; steps, epochs and packs count from 0.

    Args:
        num_packs: Packs of an epoch.
        packs_per_step: Packs of an optimiser step, all ranks together.
        total_steps: Optimiser steps of the run.
        warmup_steps: Steps of linear warm-up.
        peak: Learning rate after the warm-up.
        floor: Learning rate that the cosine ends at.
        decay: Whether there is a cosine after the warm-up.
    """

    num_packs: int
    packs_per_step: int
    total_steps: int
    warmup_steps: int
    peak: float
    floor: float
    decay: bool

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, the last one perhaps not full."""
        return -(-self.num_packs // self.packs_per_step)

    def places(self, step: int) -> tuple[int, range]:
        """Return the epoch and the places in its pack order that a step consumes."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.packs_per_step
        return epoch, range(first, min(first + self.packs_per_step, self.num_packs))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine or constant.

        The first step already learns, and the first after the last would have the floor.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if not self.decay:
            return self.peak
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * progress)) / 2


def make_schedule(recipe: Recipe, *, num_packs: int, world_size: int) -> Schedule:
    """Return the schedule of a recipe over `num_packs` packs an epoch on `world_size` ranks."""
    packs_per_step = world_size * recipe.gradient_accumulation
    total_steps = recipe.epochs * -(-num_packs // packs_per_step)
    if recipe.max_steps is not None:
        total_steps = recipe.max_steps
    return Schedule(
        num_packs=num_packs,
        packs_per_step=packs_per_step,
        total_steps=total_steps,
        warmup_steps=math.ceil(recipe.warmup_ratio * total_steps),
        peak=recipe.learning_rate,
        floor=recipe.min_learning_rate,
        decay=recipe.schedule == "cosine",
    )
