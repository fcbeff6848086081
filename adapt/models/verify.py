"""Compare what two checkpoints compute.

Both run the same inputs, in float32, layer by layer from their files: an original checkpoint
through `adapt.models.original_forward` (plain torch on the original names), a native one through
transformers' class, with its LoRA adapter through peft if it has one. Two probes: a picture with
text, and text at positions beyond the point where a dynamic or long rope changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adapt.errors import CheckFailed, CheckpointError
from adapt.models.checkpoint_config import (
    is_original,
    is_same_setting,
    naming,
    read_config,
    resolve_folder,
)
from adapt.models.config_maps import with_defaults
from adapt.models.conversion import native_shapes, original_shapes, require_tensors
from adapt.models.known_layouts import layout_of_original
from adapt.models.native_source import open_native
from adapt.models.original_forward import OriginalForward
from adapt.models.shards import open_checkpoint
from adapt.models.streamed import NativeForward
from adapt.models.tokenizers import has_tokenizer, image_token_id, load_tokenizer
from adapt.progress import progress

# Largest difference of logits allowed, as a share of the largest logit (or of 1, if that is less).
# Both sides compute in float32, so weights that are the same numbers leave only rounding of sums.
SAME_WEIGHTS = 1e-4
# Where one side's weights were rounded to this dtype and the other's were not.
ROUNDED = {"F64": 1e-4, "F32": 1e-4, "F16": 3e-3, "BF16": 2e-2}

_PROBE_TEXT = 24
_PROBE_IMAGE = 8
_FAR_TEXT = 16
_SEED = 20241021


class Forward(Protocol):
    """Something that gives logits; see `OriginalForward.logits`."""

    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        pixel_values: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return [tokens kept, vocabulary] float32."""


@dataclass(frozen=True)
class Side:
    """One checkpoint of a comparison.

    Attributes:
        name: What messages call it: its folder.
        config: Its native config, or what it would be.
        dtype: Of its weights.
        forward: How it computes.
    """

    name: str
    config: Any
    dtype: str
    forward: Forward


@dataclass(frozen=True)
class Probe:
    """One row of inputs: ids and positions [tokens], tiles [1, 3, side, side] or None.

    The logits of the tokens in `compared` are computed: later ones have seen all before them, and
    those of a whole picture would be the most memory a comparison needs.
    """

    input_ids: Tensor
    positions: Tensor
    pixel_values: Tensor | None
    compared: Tensor


@dataclass(frozen=True)
class Difference:
    """What a comparison found.

    Attributes:
        largest: Largest absolute difference of two logits.
        scale: Largest absolute logit.
        allowed: What `largest` may be.
        tokens: Tokens compared.
    """

    largest: float
    scale: float
    allowed: float
    tokens: int

    @property
    def is_within(self) -> bool:
        """Whether the checkpoints agree; a NaN never does."""
        return self.largest <= self.allowed

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest:.2g} over {self.tokens} tokens "
            f"(logits up to {self.scale:.3g}, allowed {self.allowed:.2g})"
        )


def verify_checkpoints(a: Path, b: Path, *, image_token_id: int | None = None) -> Difference:
    """Run two checkpoints, of any layout, on the same inputs and compare their logits.

    Args:
        a: A checkpoint folder.
        b: Another.
        image_token_id: Of `<IMG_CONTEXT>`, where neither folder says.

    Raises:
        CheckpointError: One is damaged, or they are of different sizes.
        CheckFailed: They disagree.
    """
    first, second = resolve_folder(a), resolve_folder(b)
    known = image_token_id
    for folder in (first, second):
        known = known if known is not None else known_image_token(folder)
    return require_agreement(open_side(first, known), open_side(second, known))


def known_image_token(folder: Path) -> int | None:
    """Return the image token id that a folder's config or tokenizer gives, None if neither does."""
    config = read_config(folder)
    if not is_original(config):
        found = config.get("image_token_id")
        return found if isinstance(found, int) else None
    return image_token_id(load_tokenizer(folder)) if has_tokenizer(folder) else None


def open_side(folder: Path, image_token: int | None, *, name: str | None = None) -> Side:
    """Prepare a checkpoint of any layout for a comparison.

    Args:
        folder: The checkpoint.
        image_token: Id of `<IMG_CONTEXT>`; a native checkpoint has its own.
        name: What messages call it, if not by its folder.

    Raises:
        CheckpointError: It is damaged, or its image token is unknown.
    """
    fields = read_config(folder)
    with naming(folder):
        if is_original(fields):
            side = _original_side(folder, fields, image_token)
        else:
            side = _native_side(folder)
    return replace(side, name=name or str(folder))


def _native_side(folder: Path) -> Side:
    native = open_native(folder)
    layout, config, checkpoint = native.layout, native.config, native.checkpoint
    require_tensors(checkpoint, native_shapes(layout, config, layout.pairs(config)))
    forward = NativeForward(layout, config, checkpoint)
    return Side(str(folder), config, checkpoint.main_dtype, forward)


def _original_side(folder: Path, fields: dict[str, Any], image_token: int | None) -> Side:
    layout = layout_of_original(fields)
    if image_token is None:
        raise CheckpointError(
            "has no tokenizer, so its image token is unknown; give --image-token-id"
        )
    config = layout.import_config(fields, image_token)
    checkpoint, pairs = open_checkpoint(folder), layout.pairs(config)
    require_tensors(checkpoint, original_shapes(pairs, native_shapes(layout, config, pairs)))
    forward = OriginalForward(checkpoint, with_defaults(fields), image_token)
    return Side(str(folder), config, checkpoint.main_dtype, forward)


def require_agreement(a: Side, b: Side, *, rounded: bool = False) -> Difference:
    """Compare two sides.

    Args:
        a: One side.
        b: The other.
        rounded: Whether weights of one side were rounded again, as merging does.

    Raises:
        CheckpointError: They are of different sizes.
        CheckFailed: They disagree.
    """
    difference = compare(a, b, rounded=rounded)
    if not math.isfinite(difference.scale):
        raise CheckFailed(
            f"{a.name} or {b.name} computes logits that are no numbers ({difference.scale}): "
            f"weights are NaN or infinite; take a checkpoint from before they became so"
        )
    if not difference.is_within:
        raise CheckFailed(f"{a.name} and {b.name} do not compute the same: {difference}")
    return difference


def compare(a: Side, b: Side, *, rounded: bool = False) -> Difference:
    """Return how far two sides are apart; see `require_agreement`."""
    _require_same_size(a, b)
    share = SAME_WEIGHTS
    if rounded or a.dtype != b.dtype:
        share = max(ROUNDED.get(side.dtype, SAME_WEIGHTS) for side in (a, b))
    differences, scales, tokens = [], [], 0
    inputs = probes(a.config)
    with progress("comparing", len(inputs), "probes") as advance:
        for probe in inputs:
            row = (probe.input_ids, probe.positions, probe.pixel_values, probe.compared)
            one, other = a.forward.logits(*row), b.forward.logits(*row)
            differences.append((one - other).abs().max())
            scales.append(torch.maximum(one.abs().max(), other.abs().max()))
            tokens += len(probe.compared)
            advance()
    # torch's max keeps a NaN, Python's would lose it.
    largest, scale = float(torch.stack(differences).max()), float(torch.stack(scales).max())
    return Difference(largest, scale, share * max(scale, 1.0), tokens)


def _require_same_size(a: Side, b: Side) -> None:
    for section, names in (
        ("", ("model_type", "image_token_id", "image_seq_length")),
        ("text_config", ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")),
        ("vision_config", ("image_size", "num_channels")),
    ):
        one, other = (getattr(side.config, section, side.config) for side in (a, b))
        for name in names:
            values = getattr(one, name), getattr(other, name)
            if not is_same_setting(*values):
                place = f"{section}.{name}".lstrip(".")
                raise CheckpointError(
                    f"{a.name} and {b.name} are not the same model: {place} is {values[0]} "
                    f"in one, {values[1]} in the other"
                )


def probes(config: Any) -> list[Probe]:
    """Return the inputs that every comparison runs; the same for the same config."""
    random = torch.Generator().manual_seed(_SEED)
    vocabulary, image = config.text_config.vocab_size, config.image_token_id
    words = torch.randint(0, vocabulary, (_PROBE_TEXT,), generator=random)
    words[words == image] = (image + 1) % vocabulary
    half = _PROBE_TEXT // 2
    picture = torch.full((config.image_seq_length,), image)
    input_ids = torch.cat((words[:half], picture, words[half:]))
    vision = config.vision_config
    shape = (1, vision.num_channels, *vision.image_size)
    pixel_values = torch.randn(shape, generator=random)
    order = torch.arange(len(input_ids))
    ends = torch.cat((order[: half + _PROBE_IMAGE], order[-half - _PROBE_IMAGE :])).unique()
    rows = [Probe(input_ids, order, pixel_values, ends)]
    start = _rope_switch(config.text_config)
    if start is not None:
        far = torch.arange(start, start + _FAR_TEXT)
        rows.append(Probe(words[:_FAR_TEXT], far, None, torch.arange(_FAR_TEXT)))
    return rows


def _rope_switch(text: Any) -> int | None:
    """Return the first position at which the rope is another one, None if it never is."""
    rope = text.rope_parameters or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    return int(text.max_position_embeddings) if rope.get("rope_type") == "dynamic" else None
