"""Records to a pack: one row of tokens, positions that restart at each record, no mask.

    records     A A A A A  B B B
    input_ids   a b c d e  f g h      [1, tokens]
    position    0 1 2 3 4  0 1 2      [1, tokens]; a restart is all that keeps A and B apart
    rows              2 3      5      hidden states that predict a supervised token
    targets           d e      g

A pack without a picture gets a filler: a black tile and its image tokens, as a last record of its
own that nothing supervises. So the vision tower takes part in every pass on every rank; without
it, ranks that wait for its gradients or its ZeRO-3 weights would hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adapt.models.chat import UNSUPERVISED
from adapt.train.loss import Reduction, token_weight

if TYPE_CHECKING:
    import torch

Tokens = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LoadedRecord:
    """A record ready for a pack.

    Args:
        input_ids: [tokens], image tokens included.
        labels: [tokens], -100 where not supervised; not shifted.
        tiles: [tiles, 3, tile_px, tile_px] uint8, in the order of the image tokens.
    """

    input_ids: Tokens
    labels: Tokens
    tiles: Pixels


@dataclass(frozen=True, slots=True)
class Filler:
    """What stands in for a picture in a pack without one."""

    image_token_id: int
    tokens_per_tile: int
    tile_px: int

    def record(self) -> LoadedRecord:
        """Return one black tile with its image tokens, nothing supervised."""
        return LoadedRecord(
            input_ids=np.full(self.tokens_per_tile, self.image_token_id, dtype=np.int64),
            labels=np.full(self.tokens_per_tile, UNSUPERVISED, dtype=np.int64),
            tiles=np.zeros((1, 3, self.tile_px, self.tile_px), dtype=np.uint8),
        )


@dataclass(frozen=True, slots=True)
class Pack:
    """A row for the model, on the host.

    Args:
        input_ids: [1, tokens] int64.
        position_ids: [1, tokens] int64.
        tiles: [tiles, 3, tile_px, tile_px] uint8; at least one.
        rows: [supervised] int64, places of the hidden states before each supervised token.
        targets: [supervised] int64.
        weights: [supervised] float32, not normalised.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    tiles: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the tensors by name, on `device`."""
        return {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "tiles", "rows", "targets", "weights")
        }


def collate(records: Sequence[LoadedRecord], reduction: Reduction, filler: Filler) -> Pack:
    """Join records to a pack; no records give an empty pack of weight 0.

    Args:
        records: In the order of the plan.
        reduction: Weight of the supervised tokens.
        filler: For a pack without a picture.
    """
    import torch

    if not any(len(record.tiles) for record in records):
        records = [*records, filler.record()]
    rows, targets, weights = [], [], []
    start = 0
    for record in records:
        # The first token of a record has nothing before it that could predict it.
        supervised = np.flatnonzero(record.labels[1:] != UNSUPERVISED) + 1
        rows.append(supervised - 1 + start)
        targets.append(record.labels[supervised])
        weight = token_weight(len(supervised), reduction)
        weights.append(np.full(len(supervised), weight, dtype=np.float32))
        start += len(record.input_ids)
    return Pack(
        input_ids=torch.from_numpy(np.concatenate([r.input_ids for r in records])[None]),
        position_ids=torch.from_numpy(
            np.concatenate([np.arange(len(r.input_ids)) for r in records])[None]
        ),
        tiles=torch.from_numpy(np.concatenate([r.tiles for r in records])),
        rows=torch.from_numpy(np.concatenate(rows)),
        targets=torch.from_numpy(np.concatenate(targets)),
        weights=torch.from_numpy(np.concatenate(weights)),
    )
