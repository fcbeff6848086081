"""The loss: cross-entropy where every supervised token has a weight.

    token    1            every token counts the same
    sample   1 / n        every record counts the same      n: supervised tokens of the record
    square   1 / sqrt(n)  between the two, the reference's choice

    loss of an optimiser step = sum(weight * cross_entropy) / sum(weight)

Both sums run over all ranks and all accumulated packs. The second is known from the plan before
the step begins, so nothing is exchanged for it and the step does not depend on how its packs are
spread over ranks and accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Reduction = Literal["token", "sample", "square"]

"""Label of a token that is not supervised."""


def token_weight(supervised: int, reduction: Reduction) -> float:
    """Return the weight of each of the `supervised` tokens of a record.

    >>> token_weight(4, "token"), token_weight(4, "sample"), token_weight(4, "square")
    (1.0, 0.25, 0.5)
    """
    if supervised == 0:
        return 0.0
    if reduction == "token":
        return 1.0
    return 1.0 / supervised if reduction == "sample" else 1.0 / math.sqrt(supervised)


def num_chunks(supervised: int, chunk_tokens: int) -> int:
    """Return into how many chunks of `chunk_tokens` supervised tokens are split: at least one.

    1024 tokens of 92,553 words are 0.4 GB of float32 logits.

    Under ZeRO-3 every chunk gathers the head's weight from all ranks, so all ranks must make the
    number of chunks of the fullest one.
    """
    return max(1, -(-supervised // chunk_tokens))


def weighted_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    chunks: int,
) -> Tensor:
    """Return sum(weight * cross_entropy) without ever holding all logits.

    The logits of a chunk are dropped after its forward pass and made again in the backward pass.

    Args:
        hidden: [supervised, hidden] last hidden states before each supervised token.
        targets: [supervised] int64, the supervised tokens.
        weights: [supervised] float32.
        head: The model's head, called as a module: hidden states to logits.
        chunks: Parts to compute one after the other; empty parts are computed too.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    parts = zip(
        hidden.tensor_split(chunks),
        targets.tensor_split(chunks),
        weights.tensor_split(chunks),
        strict=True,
    )
    for part_hidden, part_targets, part_weights in parts:
        total = total + checkpoint(
            _chunk_sum, head, part_hidden, part_targets, part_weights, use_reentrant=False
        )
    return total


def _chunk_sum(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    # float32: in bfloat16 a sum over 92,553 words keeps two digits.
    logits = head(hidden).float()
    return torch.dot(functional.cross_entropy(logits, targets, reduction="none"), weights)
