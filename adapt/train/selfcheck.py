"""The proof, before the first step, that records in a pack do not see each other.

Two records are run in one pack and one by one, through the very engine that will train, and the
logits of their supervised tokens are compared. Where attention crossed from one record into the
other, or positions ran on, the second record's logits differ by as much as logits differ at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapt.errors import EnvironmentFault
from adapt.train.collate import Filler, LoadedRecord, collate
from adapt.train.engine import Engine

if TYPE_CHECKING:
    from adapt.plan import Plan, PlannedRecord

# Share of the logits' spread. bfloat16 keeps 8 bits, and other kernels add up in another order.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def choose_records(plan: Plan, rope_switch: int | None) -> list[PlannedRecord]:
    """Return two short records that may share a pack, with pictures where there are some.

    Args:
        plan: Of the run.
        rope_switch: Tokens above which a record may not share a pack with one below.

    Returns:
        Two records, or fewer when the plan has no two.
    """
    seen: list[PlannedRecord] = []
    for index in range(min(plan.num_packs, 64)):
        seen += plan.pack(index)
    usable = [record for record in seen if record.supervised]
    short = [r for r in usable if rope_switch is None or r.tokens <= rope_switch]
    if len(short) < 2:
        short = [record for record in usable if record not in short]
    short.sort(key=lambda record: (record.tiles == 0, record.tokens, record.mix_index))
    return short[:2]


def check_packing(engine: Engine, records: Sequence[LoadedRecord], filler: Filler) -> float:
    """Compare two records packed with the same two apart; all ranks must call it.

    Returns:
        The largest difference of a logit, as a share of the logits' spread.

    Raises:
        EnvironmentFault: They differ: the attention that is installed mixes records.
    """
    packed = _logits(engine, records, filler)
    apart = torch.cat([_logits(engine, [record], filler) for record in records])
    spread = apart.std().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((packed - apart).abs().max() / spread)
    dtype = next(engine.packed.parameters()).dtype
    # Written so that a NaN fails.
    if not difference <= TOLERANCE[dtype]:
        raise EnvironmentFault(
            f"packing: two records in one pack give logits that differ from the same records "
            f"apart by {difference:.2g} of their spread (allowed {TOLERANCE[dtype]:g}): the "
            f"attention of this transformers or torch mixes packed records; adapt doctor shows "
            f"the versions"
        )
    return difference


def _logits(engine: Engine, records: Sequence[LoadedRecord], filler: Filler) -> Tensor:
    """Return [supervised, vocabulary] float32 logits of a pack."""
    pack = collate(records, "token", filler)
    with engine.evaluating() as model:
        logits: Tensor = model(**pack.inputs(engine.device), chunks=0)
    return logits.float()
