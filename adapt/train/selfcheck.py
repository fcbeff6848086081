"""The proof, before the first step, that records in a pack do not see each other.

Two records are run in one pack and one by one, through the very engine that will train, and the
logits of their supervised tokens are compared. Where attention crossed from one record into the
other, or positions ran on, the second record's logits differ by as much as logits differ at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.errors import EnvironmentFault
from adapt.train.collate import Filler, LoadedRecord, collate
from adapt.train.engine import Engine

if TYPE_CHECKING:
    from adapt.plan import Plan, PlannedRecord

# Of the logits' spread. Records that see each other differ by 0.2 and more; bfloat16, whose kernels
# may add up in another order, by 0.003 in the tiny model.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def choose_records(
    plan: Plan, rope_switch: int | None, *, without: Collection[int] = ()
) -> list[PlannedRecord]:
    """Return two short records that may share a pack, with pictures where there are some.

    Args:
        plan: Of the run.
        rope_switch: Tokens above which a record may not share a pack with one below.
        without: Rows of the mix to leave aside: their pictures cannot be read.

    Returns:
        Two records, or none when the plan has no two.
    """
    seen: list[PlannedRecord] = []
    for index in range(min(plan.num_packs, 64)):
        seen += plan.pack(index)
    usable = [one for one in seen if one.supervised and one.mix_index not in without]
    usable.sort(key=lambda record: (record.tiles == 0, record.tokens, record.mix_index))
    switch = rope_switch or max((record.tokens for record in usable), default=0)
    sides = [[r for r in usable if (r.tokens > switch) is longer] for longer in (False, True)]
    return next((side[:2] for side in sides if len(side) > 1), [])


def check_packing(engine: Engine, records: Sequence[LoadedRecord], filler: Filler) -> float:
    """Compare two records packed with the same two apart; all ranks must call it.

    Returns:
        How far a record's logits differ (root mean square) as a share of their spread, at most.

    Raises:
        EnvironmentFault: They differ: the attention that is installed mixes records.
    """
    packed = _logits(engine, records, filler)
    differences = []
    for record in records:
        apart = _logits(engine, [record], filler)
        part, packed = packed[: len(apart)], packed[len(apart) :]
        spread = apart.std().clamp_min(torch.finfo(torch.float32).tiny)
        differences.append(float((part - apart).square().mean().sqrt() / spread))
    tolerance = TOLERANCE[next(engine.packed.parameters()).dtype]
    # Written so that a NaN fails.
    if not all(difference <= tolerance for difference in differences):
        raise EnvironmentFault(
            f"packing: two records in one pack give logits that differ from the same records "
            f"apart by {max(differences):.2g} of their spread (allowed {tolerance:g}): the "
            f"attention of this transformers or torch mixes packed records; adapt doctor shows "
            f"the versions"
        )
    return max(differences)


def _logits(engine: Engine, records: Sequence[LoadedRecord], filler: Filler) -> Tensor:
    """Return [supervised, vocabulary] float32 logits of a pack."""
    pack = collate(records, "token", filler)
    with engine.evaluating() as model:
        logits: Tensor = model(**pack.inputs(engine.device), chunks=0)
    return logits.float()
