"""Pixels as the vision towers were trained on them."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [tiles, 3, px, px] uint8 as ImageNet-normalised `dtype`, on the same device."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=tiles.device).view(1, 3, 1, 1)
    return tiles.to(torch.float32).div_(255.0).sub_(mean).div_(std).to(dtype)
