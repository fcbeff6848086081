"""AdamW over the trained parameters, and the DeepSpeed configuration around it.

The optimiser is torch's own, handed to `deepspeed.initialize`: DeepSpeed's fused ones compile C++
or CUDA on first use, which needs a toolchain that many machines lack. The ZeRO settings are a
shipped file of `recipes/deepspeed` or the user's; what the recipe decides is filled in here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.errors import EnvironmentFault, RecipeError
from adapt.jsonl import read_json
from adapt.resources import recipes_dir

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adapt.recipe import Recipe

_RECIPE_DECIDES = {
    "train_batch_size": "gradient_accumulation",
    "train_micro_batch_size_per_gpu": "max_pack_tokens",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "learning_rate, weight_decay, betas, eps",
    "scheduler": "schedule, warmup_ratio",
    "bf16": "dtype",
    "fp16": "dtype",
}
"""Keys of a DeepSpeed file that stand in the recipe, and where there."""
_STAGES = (1, 2, 3)
_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
_ZERO_NUMBERS = (*_BUCKETS, "stage3_prefetch_bucket_size", "stage3_max_live_parameters")
_ZERO_OBJECTS = ("offload_optimizer", "offload_param")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: with weight decay, and without.

    Biases, norms, layer scales and the class token, which are vectors, are not decayed. An empty
    group is left out.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Of a shape such as [1, 1, hidden] only one side is more than 1.
            vector = sum(side > 1 for side in parameter.shape) <= 1
            (plain if vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW over what `model` trains.

    Raises:
        RecipeError: Nothing is trained.
    """
    import torch

    groups = parameter_groups(model, recipe.weight_decay)
    if not groups:
        raise RecipeError(f"method {recipe.method}: no parameter is trained; choose another method")
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)


def _is_left_open(value: object) -> bool:
    """Return whether a file leaves a key to others, in any of the ways that such files do."""
    if isinstance(value, dict):
        return value.get("enabled") in ("auto", False)
    return value == "auto"


def deepspeed_config(recipe: Recipe, *, trained: int) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`.

    Args:
        recipe: Names the file, and decides the rest.
        trained: Parameters that are trained: no bucket need be larger.

    Raises:
        RecipeError: The file is no JSON object, has no ZeRO stage, or sets what the recipe decides.
    """
    path = _settings_path(recipe)
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: holds a {type(settings).__name__}, expected a JSON object")
    for key, field in _RECIPE_DECIDES.items():
        if not _is_left_open(settings.get(key, "auto")):
            raise RecipeError(f"{path}: sets {key}, which the recipe decides ({field}); remove it")
        settings.pop(key, None)
    zero = _zero_part(settings.get("zero_optimization"), path)
    for bucket in _BUCKETS:
        if bucket in zero:
            zero[bucket] = min(int(zero[bucket]), trained)
    return settings | {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "gradient_clipping": recipe.max_grad_norm,
        "bf16": {"enabled": recipe.dtype == "bf16"},
        "zero_allow_untested_optimizer": True,
        # With offload DeepSpeed would insist on its own CPU Adam, which has to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        # Its own progress lines are not wanted.
        "steps_per_print": 2**31,
    }


def _settings_path(recipe: Recipe) -> Path:
    shipped = recipes_dir() / "deepspeed" / f"{recipe.deepspeed}.json"
    return shipped if shipped.is_file() else Path(recipe.deepspeed)


def _zero_part(found: object, path: Path) -> dict[str, Any]:
    """Return `zero_optimization` without what it leaves to DeepSpeed (null, "auto").

    Without a stage there is no gradient norm; DeepSpeed takes a misspelt key for none at all.
    """
    if not isinstance(found, dict):
        raise RecipeError(
            f"{path}: zero_optimization is {found!r}, expected an object such as "
            f'{{"stage": 2}}; docs/recipes.md says what such a file holds'
        )
    zero = {key: value for key, value in found.items() if value is not None and value != "auto"}
    stage = zero.get("stage")
    if stage not in _STAGES or isinstance(stage, bool | float):
        raise RecipeError(f"{path}: zero_optimization.stage is {stage!r}, expected 1, 2 or 3")
    for key in zero.keys() & {*_ZERO_NUMBERS, *_ZERO_OBJECTS}:
        value, words = zero[key], "a number"
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _ZERO_OBJECTS:
            fits, words = isinstance(value, dict), 'an object such as {"device": "cpu"}'
        if not fits:
            raise RecipeError(f"{path}: zero_optimization.{key} is {value!r}, expected {words}")
    return zero


@contextmanager
def refusals_named(recipe: Recipe) -> Iterator[None]:
    """Name a user's own file in what DeepSpeed finds wrong with it.

    Raises:
        RecipeError: DeepSpeed refuses a setting of the file.
        EnvironmentFault: A setting needs an operator that cannot be compiled here.
    """
    from deepspeed.runtime.config import DeepSpeedConfigError

    path = _settings_path(recipe)
    is_shipped = path.parent == recipes_dir() / "deepspeed"
    try:
        yield
    except (DeepSpeedConfigError, AssertionError, TypeError, ValueError) as error:
        if is_shipped:
            raise
        raise RecipeError(f"{path}: DeepSpeed refuses it: {_in_a_line(error)}") from error
    except RuntimeError as error:
        if is_shipped or "JIT load" not in str(error):
            raise
        raise EnvironmentFault(
            f"{path}: needs a part of DeepSpeed that cannot be compiled here: {_in_a_line(error)}"
        ) from error


def _in_a_line(error: Exception) -> str:
    """Return an error's text in one line; of pydantic's the settings and what is wrong there."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        found = error.errors()
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in found)
    return " ".join(str(error).split()) or type(error).__name__
