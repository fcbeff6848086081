"""Merge a LoRA adapter into its base: a whole native checkpoint, tensor by tensor."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import CheckpointError
from adapt.models.checkpoint_config import naming, resolve_folder
from adapt.models.conversion import Conversion, ConversionReport, copy_native
from adapt.models.exporting import write_native_files
from adapt.models.lora import Adapter, open_adapter
from adapt.models.native_source import NativeSource, open_native
from adapt.models.presets import preset_names
from adapt.models.shards import Checkpoint, write_checkpoint
from adapt.models.streamed import NativeForward
from adapt.models.verify import Side, open_side, require_agreement
from adapt.new_folder import new_folder

# Elements of each tensor that tell one checkpoint from another.
_SAMPLED = 1024


def merge_adapter(adapter: Path, base: Path, out: Path, *, verify: bool = True) -> ConversionReport:
    """Merge a LoRA adapter into its native base.

    Args:
        adapter: Folder with adapter_config.json, or a run folder with one in `adapter/`.
        base: Native checkpoint folder it was trained on.
        out: Folder to write; it must not exist, or be empty.
        verify: Compare the logits of base and adapter, through peft, with those of the result.

    Raises:
        CheckpointError: Either is damaged, or the adapter is of another base; nothing is written.
        CheckFailed: The result computes other logits; nothing is written.
    """
    began = time.monotonic()
    opened = open_adapter(_adapter_folder(adapter))
    native = open_native(resolve_folder(base))
    shapes = {name: spec.shape for name, spec in native.checkpoint.specs.items()}
    opened.require_base(shapes, native.folder)
    _require_recorded_base(opened, native)
    with naming(native.folder):
        conversion = copy_native(native.layout, native.config, native.checkpoint)
    with new_folder(out) as folder:
        write_checkpoint(folder, conversion.specs, _merged(conversion, opened, native))
        write_native_files(folder, native)
        difference = None
        if verify:
            difference = require_agreement(
                _adapted_side(opened, native),
                open_side(folder, native.config.image_token_id, name=str(out)),
                rounded=True,
            )
    return ConversionReport(
        out=out,
        layout=native.layout.name,
        tensors_in=conversion.num_sources + len(opened.checkpoint.specs),
        tensors_out=len(conversion.specs),
        num_bytes=native.checkpoint.num_bytes,
        difference=difference,
        seconds=time.monotonic() - began,
    )


def _adapter_folder(folder: Path) -> Path:
    inner = folder / "adapter"
    return inner if (inner / "adapter_config.json").exists() else folder


def _merged(
    conversion: Conversion, adapter: Adapter, native: NativeSource
) -> Iterator[tuple[str, Tensor]]:
    """Yield the base's tensors, those of adapted modules with their part added in float32."""
    for name, tensor in conversion.tensors:
        module = native.layout.memory_name(name).removesuffix(".weight")
        if module in adapter.modules:
            tensor = (tensor.float() + adapter.delta(module)).to(tensor.dtype)
        yield name, tensor


def _adapted_side(adapter: Adapter, native: NativeSource) -> Side:
    forward = NativeForward(native.layout, native.config, native.checkpoint, adapter)
    name = f"{native.folder} with {adapter.folder}"
    return Side(name, native.config, native.checkpoint.main_dtype, forward)


def _require_recorded_base(adapter: Adapter, base: NativeSource) -> None:
    """Refuse a base of the same sizes that is not the one the adapter says it was trained on.

    What it says is a path or a name. Where neither can be looked up, sizes are all there is.
    """
    recorded = adapter.config.get("base_model_name_or_path")
    if not recorded:
        return
    if (Path(recorded) / "config.json").exists() and Path(recorded).resolve() != (
        base.folder.resolve()
    ):
        other = open_native(Path(recorded)).checkpoint
        differs = fingerprint(other) != fingerprint(base.checkpoint)
    else:
        known = base.card.preset
        differs = recorded in preset_names() and known is not None and recorded != known
    if differs:
        raise CheckpointError(
            f"{adapter.folder}: is a LoRA of another base: it was trained on {recorded}, whose "
            f"weights are not those of {base.folder}; give that base"
        )


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest that tells checkpoints apart: names, dtypes, shapes, some of each tensor."""
    digest = hashlib.sha256()
    for name, spec in sorted(checkpoint.specs.items()):
        digest.update(f"{name}\0{spec.dtype}\0{spec.shape}\0".encode())
        sample = checkpoint.read(name).reshape(-1)[:_SAMPLED].contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
