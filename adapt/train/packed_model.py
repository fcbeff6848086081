"""The model as the trainer calls it: a pack in, a weighted sum of cross-entropies out.

    tiles uint8 -> normalised -> model.model(no mask) -> hidden states of the supervised tokens
                                                       -> head and cross-entropy, chunk by chunk

Only the hidden states before supervised tokens meet the head: of a conversation about a picture
most tokens are image tokens, and their logits are never needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapt.models.pixels import normalise
from adapt.train.loss import weighted_cross_entropy


class PackedModel(nn.Module):
    """A vision-language model with the trainer's loss.

    Args:
        core: A model with `.model` (last hidden states) and `.lm_head`.
    """

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor, tiles: Tensor) -> Tensor:
        """Return [tokens, hidden] last hidden states of a row of packed records."""
        if input_ids.shape[0] != 1:
            raise ValueError(f"a pack is one row, got {input_ids.shape[0]}")
        outputs = self.core.model(
            input_ids=input_ids,
            position_ids=position_ids,
            pixel_values=normalise(tiles, self._dtype()),
            # A mask, even of ones, would switch off the separation by position and let every
            # record see those before it.
            attention_mask=None,
            use_cache=False,
        )
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        tiles: Tensor,
        rows: Tensor,
        targets: Tensor,
        weights: Tensor,
        chunks: int = 0,
    ) -> Tensor:
        """Return the sum of weight x cross-entropy of a pack, or logits.

        Args:
            input_ids: [1, tokens].
            position_ids: [1, tokens], restarting at each record.
            tiles: [tiles, 3, px, px] uint8.
            rows: [supervised] places of the hidden states to score.
            targets: [supervised] tokens they should predict.
            weights: [supervised] float32.
            chunks: Parts of the cross-entropy; 0 returns [supervised, vocabulary] logits.
        """
        hidden = self.hidden_states(input_ids, position_ids, tiles).index_select(0, rows)
        if chunks == 0:
            logits: Tensor = self.core.lm_head(hidden)
            return logits
        return weighted_cross_entropy(hidden, targets, weights, self.core.lm_head, chunks=chunks)

    def _dtype(self) -> torch.dtype:
        # ZeRO-3 leaves empty parameters behind, but their dtype.
        dtype: torch.dtype = next(self.core.parameters()).dtype
        return dtype
