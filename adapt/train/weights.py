"""Trained weights as folders that transformers and peft open: safetensors, never pickle.

full, freeze-vit    model/     native checkpoint: config, weights, tokenizer, adapt.json
lora, qlora         adapter/   peft adapter; merged into the base by `adapt.models.merge`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from adapt.train.engine import ADAPTER, DTYPES, Engine

if TYPE_CHECKING:
    from adapt.models.handle import ModelHandle
    from adapt.recipe import Recipe

_FULLY_SHARDED = 3


def gather_weights(engine: Engine) -> dict[str, Tensor]:
    """Return whole weights on the host, on rank 0; elsewhere nothing. All ranks must call it.

    With an adapter its weights alone, otherwise all of the model's.
    """
    core = engine.packed.core
    named = dict(core.named_parameters())
    if engine.adapter is not None:
        named = {name: value for name, value in named.items() if value.requires_grad}
    weights = {}
    for name, parameter in named.items():
        with _whole(parameter, engine.stage):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights


def _whole(parameter: Tensor, stage: int) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=stage == _FULLY_SHARDED)


def write_weights(
    folder: Path, weights: dict[str, Tensor], engine: Engine, handle: ModelHandle
) -> None:
    """Write gathered weights into `folder`: an adapter, or a native checkpoint. Rank 0 only."""
    if engine.adapter is None:
        save_native(engine.packed.core, folder, handle, weights)
        return
    prefixed = {f"base_model.model.{name}": value for name, value in weights.items()}
    engine.adapter.peft_config[ADAPTER].base_model_name_or_path = str(handle.folder or handle.name)
    # Asked to decide by itself, peft would look the base up on the hub.
    engine.adapter.save_pretrained(folder, state_dict=prefixed, save_embedding_layers=False)
    # peft's card is a form that nobody has filled in; the run has its own.
    (folder / "README.md").unlink(missing_ok=True)


@contextmanager
def base_folder(handle: ModelHandle, recipe: Recipe, near: Path) -> Iterator[Path]:
    """Give the native checkpoint that a run began with; one of random weights is written `near`."""
    if handle.folder is not None:
        yield handle.folder
        return
    with TemporaryDirectory(dir=near, prefix=".base.") as name:
        save_native(handle.load(DTYPES[recipe.dtype], seed=recipe.seed), Path(name), handle)
        yield Path(name)


def save_native(
    core: Any, folder: Path, handle: ModelHandle, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a native checkpoint: config, safetensors, tokenizer, `adapt.json`.

    Args:
        core: A native model.
        folder: Made here.
        handle: Of its base.
        weights: Whole weights, where `core` has only its share of them.
    """
    core.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
    handle.save_extras(folder)
    for path in folder.iterdir():
        # safetensors keeps its files to their owner, on a disk that a team may share.
        path.chmod(0o644)
