"""Match the tensors of a checkpoint with a layout, then stream them across.

Every source tensor is used exactly once and every target filled exactly once; the list of expected
tensors comes from the model itself, built on the meta device, not from what happens to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapt.errors import CheckpointError, some
from adapt.models.layouts import Layout, Pair, Shape
from adapt.models.shards import DTYPES, Checkpoint, TensorSpec

if TYPE_CHECKING:
    from adapt.models.verify import Difference


@dataclass(frozen=True)
class ConversionReport:
    """What an import, an export or a merge did.

    Attributes:
        out: Folder written.
        layout: Kind of checkpoint, such as `internlm2`.
        tensors_in: Tensors read, each once.
        tensors_out: Tensors written, each once.
        num_bytes: Bytes of the tensors.
        difference: Of the logits of both sides; None: not compared.
        seconds: Time of it all.
    """

    out: Path
    layout: str
    tensors_in: int
    tensors_out: int
    num_bytes: int
    difference: Difference | None
    seconds: float

    def __str__(self) -> str:
        verified = self.difference or "not verified"
        return (
            f"{self.out}: {self.layout}, {self.tensors_in} tensors in, {self.tensors_out} out, "
            f"{self.num_bytes / 1024**2:.1f} MiB, {self.seconds:.1f} s; {verified}"
        )


@dataclass(frozen=True)
class Conversion:
    """A checked way across: what is written, in which order, from what.

    Attributes:
        specs: Tensors to write, in order.
        tensors: Yields (name, tensor) in that order; each source tensor is read once.
        num_sources: Source tensors used.
    """

    specs: list[TensorSpec]
    tensors: Iterator[tuple[str, torch.Tensor]]
    num_sources: int


def convert_to_native(layout: Layout, config: Any, source: Checkpoint) -> Conversion:
    """Return the way from an original checkpoint to native tensors.

    Raises:
        CheckpointError: Source tensors are missing, left over or of another shape.
    """
    pairs = layout.pairs(config)
    shapes = native_shapes(layout, config, pairs)
    require_tensors(source, original_shapes(pairs, shapes))
    pairs.sort(key=lambda pair: source.specs[pair.original].place)
    specs = [
        TensorSpec(layout.disk_name(name), source.specs[pair.original].dtype, shapes[name])
        for pair in pairs
        for name in pair.native
    ]
    return Conversion(specs, _split_all(layout, source, pairs), len(pairs))


def _split_all(
    layout: Layout, source: Checkpoint, pairs: list[Pair]
) -> Iterator[tuple[str, torch.Tensor]]:
    for pair in pairs:
        parts = pair.cut.split(source.read(pair.original))
        for name, part in zip(pair.native, parts, strict=True):
            yield layout.disk_name(name), part


def convert_to_original(layout: Layout, config: Any, source: Checkpoint) -> Conversion:
    """Return the way from a native checkpoint to original tensors.

    Args:
        layout: Of the checkpoint.
        config: Its native config.
        source: Its tensors, under their names in memory.

    Raises:
        CheckpointError: Source tensors are missing, left over or of another shape.
    """
    pairs = layout.pairs(config)
    shapes = native_shapes(layout, config, pairs)
    require_tensors(source, shapes)
    joined = original_shapes(pairs, shapes)
    specs = {
        pair.original: TensorSpec(pair.original, _common_dtype(source, pair), joined[pair.original])
        for pair in pairs
    }
    pairs.sort(key=lambda pair: specs[pair.original].place)
    tensors = (
        (pair.original, pair.cut.join([source.read(name) for name in pair.native]))
        for pair in pairs
    )
    return Conversion([specs[pair.original] for pair in pairs], tensors, len(shapes))


def copy_native(layout: Layout, config: Any, source: Checkpoint) -> Conversion:
    """Return the way from native tensors to the same ones, named as `save_pretrained` does.

    Args:
        layout: Of the checkpoint.
        config: Its native config.
        source: Its tensors, under their names in memory.

    Raises:
        CheckpointError: Source tensors are missing, left over or of another shape.
    """
    require_tensors(source, native_shapes(layout, config, layout.pairs(config)))
    order = sorted(source.specs.values(), key=lambda spec: spec.place)
    specs = [TensorSpec(layout.disk_name(spec.name), spec.dtype, spec.shape) for spec in order]
    tensors = ((layout.disk_name(spec.name), source.read(spec.name)) for spec in order)
    return Conversion(specs, tensors, len(order))


def _common_dtype(source: Checkpoint, pair: Pair) -> str:
    dtypes = sorted({source.specs[name].dtype for name in pair.native})
    if len(dtypes) > 1:
        raise CheckpointError(
            f"{source.folder}: {some(pair.native)} have dtypes {' and '.join(dtypes)}, but become "
            f"one tensor ({pair.original}); save the model in one dtype"
        )
    return dtypes[0]


def native_shapes(layout: Layout, config: Any, pairs: list[Pair]) -> dict[str, Shape]:
    """Return the shape of every tensor the native model has, by its name in memory.

    Raises:
        CheckpointError: The layout does not fill each of them exactly once, or the config is one
            that transformers cannot build.
    """
    try:
        with torch.device("meta"):
            model = layout.build(config)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json: transformers cannot build it: {reason}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    filled = Counter(name for pair in pairs for name in pair.native)
    wrong = [name for name in {**shapes, **filled} if filled[name] != (name in shapes)]
    if wrong:
        raise CheckpointError(
            f"the {layout.name} layout does not fit this config: {some(wrong, most=20)} would not "
            f"be filled exactly once"
        )
    return shapes


def original_shapes(pairs: list[Pair], native: dict[str, Shape]) -> dict[str, Shape]:
    """Return the shape of every original tensor, by name; `native` is from `native_shapes`."""
    return {
        pair.original: pair.cut.joined_shape([native[name] for name in pair.native])
        for pair in pairs
    }


def require_tensors(source: Checkpoint, expected: dict[str, Shape]) -> None:
    """Make sure that a checkpoint holds exactly these tensors, as floating-point numbers.

    Raises:
        CheckpointError: With every tensor that is missing, left over, of another shape or dtype.
    """
    found = {name: spec.shape for name, spec in source.specs.items()}
    reshaped = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in found if name not in expected],
        "of another shape": reshaped,
        "of no floating-point dtype": [
            f"{name} is {spec.dtype}"
            for name, spec in source.specs.items()
            if not DTYPES[spec.dtype].is_floating_point
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {some(sorted(names), most=20)}"
            for what, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"{source.folder}: the tensors do not fit its config.json: {listed}; the files may be "
            f"of two models, or of a part of one: fetch the checkpoint again"
        )
