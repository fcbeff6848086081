"""A LoRA adapter as peft saves it: adapter_config.json + adapter_model.safetensors.

    base_model.model.MODULE.lora_A.weight  [rank, in]      W + scaling * B A, scaling = alpha / rank
    base_model.model.MODULE.lora_B.weight  [out, rank]     (rank-stabilised: alpha / sqrt(rank))

Plain LoRA on linear modules, which is what `adapt train` makes. Anything beyond it is refused by
name rather than merged wrongly.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.errors import CheckpointError, SourceError, some
from adapt.jsonl import read_json
from adapt.models.layouts import Shape
from adapt.models.shards import DTYPES, Checkpoint, open_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What these hold unless the adapter is more than plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        folder: Where it is.
        config: Its adapter_config.json.
        checkpoint: Its tensors.
        modules: Full names of the modules it adapts.
    """

    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    modules: tuple[str, ...]

    def delta(self, module: str) -> Tensor:
        """Return what is added to a module's weight: [out, in] float32."""
        down = self.checkpoint.read(f"{_PREFIX}{module}{_A}").float()
        up = self.checkpoint.read(f"{_PREFIX}{module}{_B}").float()
        return up @ down * self._scaling(module, rank=len(down))

    def _scaling(self, module: str, *, rank: int) -> float:
        alpha = _setting(self.config, "lora_alpha", "alpha_pattern", module)
        stable = self.config.get("use_rslora", False)
        return float(alpha / (math.sqrt(rank) if stable else rank))

    def require_base(self, shapes: dict[str, Shape], base: Path) -> None:
        """Make sure that every module it adapts is in a base, in the size it was trained for.

        Args:
            shapes: Shapes of the base's tensors, by their names in memory.
            base: What messages call the base.

        Raises:
            CheckpointError: With the modules that do not fit.
        """
        wrong = []
        for module in self.modules:
            down = self.checkpoint.specs[f"{_PREFIX}{module}{_A}"].shape
            up = self.checkpoint.specs[f"{_PREFIX}{module}{_B}"].shape
            found = shapes.get(f"{module}.weight")
            if found is None:
                wrong.append(f"{module} is not in it")
            elif found != (up[0], down[1]):
                wrong.append(f"{module} is {list(found)}, not {[up[0], down[1]]}")
        if wrong:
            raise CheckpointError(
                f"{self.folder}: is a LoRA of another base than {base}: {some(wrong, most=4)}; "
                f"it was trained on {self.config.get('base_model_name_or_path')}"
            )


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's config and list its tensors.

    Raises:
        CheckpointError: It is missing, damaged, a pickle, or more than plain LoRA.
    """
    try:
        config = read_json(folder / CONFIG)
    except SourceError as error:
        raise CheckpointError(f"{error}; expected a LoRA adapter as peft saves it") from error
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha"), int | float):
        raise CheckpointError(f"{folder / CONFIG}: has no lora_alpha; it is not a LoRA adapter")
    _check_config(folder, config)
    for name, plain in _PLAIN.items():
        if config.get(name, plain[0]) not in plain:
            raise CheckpointError(
                f"{folder / CONFIG}: {name} is {config[name]!r}, expected {plain[0]!r}: more than "
                f"plain LoRA is not merged here; merge it with peft's merge_and_unload"
            )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: has no {WEIGHTS}; a pickled adapter_model.bin can run any code and is not "
            f"read: save the adapter anew with peft"
        )
    checkpoint = open_file(folder / WEIGHTS)
    return Adapter(folder, config, checkpoint, _modules(folder, config, checkpoint))


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Refuse values that plain LoRA cannot have.

    Raises:
        CheckpointError: With the first of them.
    """
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise CheckpointError(
            f"{folder / CONFIG}: base_model_name_or_path is {base!r}, expected a path or a name"
        )
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns.items())):
            raise CheckpointError(
                f"{folder / CONFIG}: {name} is {patterns!r}, expected regular expressions of "
                f"module names, each with a number"
            )


def _is_pattern(item: tuple[str, Any]) -> bool:
    try:
        re.compile(item[0])
    except re.error:
        return False
    return isinstance(item[1], int | float)


def _setting(config: dict[str, Any], name: str, patterns: str, module: str) -> Any:
    """Return a module's own value of a setting, else that of all."""
    for pattern, own in (config.get(patterns) or {}).items():
        # As peft reads it: a regular expression for the end of the name, the first that fits.
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return own
    return config.get(name)


def _modules(folder: Path, config: dict[str, Any], checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the adapted modules; each has exactly an A and a B of the rank the config gives."""
    names = {
        name.removeprefix(_PREFIX).removesuffix(leaf)
        for name in checkpoint.specs
        for leaf in (_A, _B)
        if name.startswith(_PREFIX) and name.endswith(leaf)
    }
    expected = {f"{_PREFIX}{module}{leaf}" for module in names for leaf in (_A, _B)}
    if not names or expected != checkpoint.specs.keys():
        wrong = sorted(expected ^ checkpoint.specs.keys())
        raise CheckpointError(
            f"{folder / WEIGHTS}: expected a lora_A and a lora_B for each module, found otherwise "
            f"for {some(wrong) or 'all: there are none'}; it is damaged or not a LoRA"
        )
    for module in sorted(names):
        down = checkpoint.specs[f"{_PREFIX}{module}{_A}"].shape
        up = checkpoint.specs[f"{_PREFIX}{module}{_B}"].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {module} has lora_A {list(down)} and lora_B {list(up)}, "
                f"expected [rank, in] and [out, rank]"
            )
        rank = _setting(config, "r", "rank_pattern", module)
        if not down[0] or down[0] != rank:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {module} has rank {down[0]}, but {CONFIG} gives {rank}; the "
                f"two files are of different adapters"
            )
    for name, spec in checkpoint.specs.items():
        if not DTYPES[spec.dtype].is_floating_point:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has dtype {spec.dtype}, expected floating point"
            )
    return tuple(sorted(names))


def put_adapter(model: Any, adapter: Adapter) -> Any:
    """Return a native model on the meta device with an adapter, in float32, put on by peft.

    Raises:
        CheckpointError: peft refuses the adapter's config.
    """
    import peft

    try:
        with warnings.catch_warnings():
            # peft asks transformers by an older name.
            warnings.simplefilter("ignore", FutureWarning)
            options = peft.LoraConfig.from_pretrained(adapter.folder)
            wrapped = peft.PeftModel(model, options, low_cpu_mem_usage=True)
    except (ValueError, TypeError, AttributeError, KeyError, ImportError, re.error) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{adapter.folder / CONFIG}: peft refuses it: {reason}") from error
    # peft leaves the adapter where the base is: on the meta device.
    for name, module in wrapped.named_modules():
        stored = f"{name.removesuffix('.default')}.weight"
        if stored in adapter.checkpoint.specs:
            weight = adapter.checkpoint.read(stored).float()
            module.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    return wrapped.eval()
