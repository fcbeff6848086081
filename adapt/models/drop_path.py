"""Drop path (stochastic depth) in the vision tower, which transformers' InternVL leaves out.

    layer i of n:  rate_i = linspace(0, rate, n)[i]
        h = h + keep_i(lambda_1 * attention(norm(h)))
        h = h + keep_i(lambda_2 * mlp(norm(h)))
    keep_i: per tile, 0 with probability rate_i, else 1 / (1 - rate_i); the two are independent

It is a forward hook on the attention and on the MLP of each layer: the layer scale that follows
multiplies by channel, so scaling before it is the same. Hooks add no parameter and no name to the
state dict. Under activation checkpointing they run inside the layer that is run again, where the
random state is restored: both passes drop the same branches.

Off in eval mode, and in a branch with no trainable parameter (a frozen tower or layer).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer

from adapt.errors import RecipeError


class DropPath:
    """A forward hook that drops a residual branch for some tiles of the batch.

    Attributes:
        rate: Probability of a drop, 0 <= rate < 1.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, branch: nn.Module, _inputs: Any, output: Any) -> Any:
        """Return the branch's output [tiles, ...] with dropped tiles at zero, the rest scaled."""
        if not branch.training or not any(part.requires_grad for part in branch.parameters()):
            return output
        if isinstance(output, tuple):
            return (self._drop(output[0]), *output[1:])
        return self._drop(output)

    def _drop(self, states: Tensor) -> Tensor:
        keep = 1.0 - self.rate
        shape = (states.shape[0],) + (1,) * (states.ndim - 1)
        return states * states.new_empty(shape).bernoulli_(keep).div_(keep)


def inject_drop_path(model: nn.Module, rate: float) -> list[float]:
    """Give every layer of the model's vision towers its drop path; once more replaces the rate.

    Args:
        model: A model with an InternVL vision tower; others, Mono-InternVL too, stay as they are.
        rate: That of the last layer; the first has 0, the ones between lie on a line. 0 removes.

    Returns:
        The rates of the layers, first to last; empty without a vision tower.

    Raises:
        RecipeError: `rate` is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise RecipeError(f"drop path rate is {rate}, expected 0 <= rate < 1")
    layers = [module for module in model.modules() if isinstance(module, InternVLVisionLayer)]
    rates: list[float] = torch.linspace(0, rate, len(layers), dtype=torch.float64).tolist()
    for layer, layer_rate in zip(layers, rates, strict=True):
        for branch in (layer.attention, layer.mlp):
            _remove(branch)
            if layer_rate > 0:
                branch.register_forward_hook(DropPath(layer_rate))
    return rates


def _remove(branch: nn.Module) -> None:
    for key, hook in list(branch._forward_hooks.items()):
        if isinstance(hook, DropPath):
            del branch._forward_hooks[key]
