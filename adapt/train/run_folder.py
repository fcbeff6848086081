"""Whether a run may begin or go on in its folder, and what it needs there before it starts."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from adapt import __version__
from adapt.errors import CheckpointError, RecipeError, UsageError
from adapt.jsonl import write_bytes, write_json
from adapt.options import as_plain
from adapt.recipe import Recipe, load_recipe
from adapt.recipe_view import render_recipe
from adapt.resources import ROOT
from adapt.run_paths import RunFolder
from adapt.train.optimizer import deepspeed_config
from adapt.train.run_state import find_latest

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.handle import ModelHandle
    from adapt.plan import Plan

MAY_CHANGE = frozenset(
    {
        "name",
        "description",
        "domains",
        "ratio",
        "mix",
        "out",
        "save_every",
        "keep_checkpoints",
        "log_every",
        "tensorboard",
        "data_workers",
        "max_unreadable",
    }
)
"""Options that a resumed run may have otherwise: they change no step. The mix may move."""
_LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def prepare(recipe: Recipe, *, resume: bool) -> RunFolder:
    """Make a run's folder ready, plan included, before any rank starts.

    Args:
        recipe: Of the run.
        resume: Whether to go on with a run that is there.

    Raises:
        UsageError: A run is there and `resume` is not given.
        RecipeError: The run that is there has another recipe or plan.
        CheckpointError: The run that is there has lost its recipe.
        EnvironmentFault: The folder cannot be written.
    """
    from adapt.mix import read_mix
    from adapt.models.handle import open_model
    from adapt.plan_report import domain_notice

    run = RunFolder(recipe.out)
    _may_use(run, recipe, resume=resume)
    # Refuses a bad file now, not when the mix is measured and the ranks have started.
    deepspeed_config(recipe, trained=0)
    mix = read_mix(recipe.mix)
    mix.verify()
    if notice := domain_notice(recipe, mix):
        print(notice)
    handle = open_model(recipe.model)
    plan = _ready_plan(recipe, handle, mix, run)
    write_bytes(run.recipe, render_recipe(recipe).encode())
    write_json(run.versions, versions())
    print(
        f"{run.folder}: {plan.num_records} records in {plan.num_packs} packs; "
        f"model {handle.name}, method {recipe.method}, {recipe.deepspeed}, {recipe.dtype}"
    )
    return run


def _may_use(run: RunFolder, recipe: Recipe, *, resume: bool) -> None:
    """Refuse a folder whose run this one would overwrite or not continue."""
    begun = find_latest(run.checkpoints) is not None or run.model.exists()
    if begun and not resume:
        raise UsageError(
            f"{run.folder}: holds a run already; --resume goes on with it, "
            f"--set out=FOLDER starts another"
        )
    if begun and not run.recipe.exists():
        raise CheckpointError(
            f"{run.recipe}: is gone, so nobody knows what the checkpoints beside it are of; "
            f"bring it back, or start another run with --set out=FOLDER"
        )
    if begun:
        _compare_recipes(load_recipe(run.recipe), recipe, run)


def _compare_recipes(before: Recipe, now: Recipe, run: RunFolder) -> None:
    old, new = as_plain(before), as_plain(now)
    changed = [
        f"{key} was {old[key]!r}, is {new[key]!r}"
        for key in old
        if key not in MAY_CHANGE and old[key] != new[key]
    ]
    if changed:
        raise RecipeError(
            f"{run.folder}: cannot resume with another recipe: {'; '.join(changed)}; "
            f"take these back, or start another run with --set out=FOLDER"
        )


def _ready_plan(recipe: Recipe, handle: ModelHandle, mix: Mix, run: RunFolder) -> Plan:
    """Return the run's plan, written to its folder; a run that has begun keeps the one it has."""
    from adapt.plan import build_plan, load_plan, mix_digest

    if find_latest(run.checkpoints) is not None or run.model.exists():
        plan = load_plan(run.plan)
        if plan.about["mix"] != mix_digest(mix):
            raise RecipeError(
                f"{run.folder}: its plan was made for another mix than {recipe.mix} now is; mix "
                f"as before, or start another run with --set out=FOLDER"
            )
        return plan
    plan = build_plan(recipe, handle, mix)
    if plan.num_packs == 0:
        raise RecipeError(f"{recipe.mix}: no record fits the recipe's limits; nothing to train on")
    # What an earlier attempt left, that came to no checkpoint.
    for stale in (run.checkpoints, run.tensorboard, run.logs):
        shutil.rmtree(stale, ignore_errors=True)
    for file in (run.metrics, run.unreadable):
        file.unlink(missing_ok=True)
    plan.save(run.plan)
    return plan


def versions() -> dict[str, Any]:
    """Return what the run runs on: adapt and its commit, libraries, Python, GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "adapt": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _commit() -> str | None:
    """Return the commit of a checkout of adapt, None when it is installed otherwise."""
    top = ROOT.parent
    if not (top / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(top), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
