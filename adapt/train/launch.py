"""`adapt train`: prepare the run, then train in this process, in several, or as one of many.

adapt train RECIPE                  one process a GPU; without a GPU, this one
adapt train RECIPE --nproc 2        two processes of this machine
torchrun ... -m adapt train RECIPE  this process is one rank; so with deepspeed and srun
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

from adapt.errors import UsageError
from adapt.one_writer import one_writer
from adapt.recipe import load_recipe
from adapt.run_paths import RunFolder
from adapt.threads import wait_politely
from adapt.train.place import Place, find_place
from adapt.train.processes import rank_command, run_ranks
from adapt.train.run_folder import prepare


def run_train(
    recipe: Path, overrides: tuple[str, ...] = (), *, resume: bool = False, nproc: int | None = None
) -> None:
    """Train a model as a recipe says.

    Args:
        recipe: File, or name of a shipped recipe.
        overrides: `key=value` each.
        resume: Go on from the run's last checkpoint; from the start when it has none.
        nproc: Processes on this machine; None: one for each GPU, or one.

    Raises:
        AdaptError: See `adapt.errors`; every one names what to do.
    """
    wait_politely()
    if nproc is not None and nproc < 1:
        raise UsageError(f"--nproc {nproc}: expected at least 1")
    gpus = _num_gpus()
    if nproc is not None and gpus and nproc > gpus:
        raise UsageError(f"--nproc {nproc}: this machine has {gpus} GPUs, a process takes one each")
    options = load_recipe(recipe, overrides)
    place = find_place(os.environ)
    if place is not None and nproc is not None:
        raise UsageError(
            "--nproc is for adapt's own launcher, and another one (torchrun, deepspeed, srun) "
            "has started this process; leave --nproc out"
        )
    count = nproc or max(1, gpus)
    run = RunFolder(options.out)
    finished = resume and run.model.exists()
    if place is not None and place.rank > 0:
        number = 0 if finished else _run_here(run, place)
    else:
        with _one_run(options.out):
            prepare(options, resume=resume)
            if finished:
                print(f"{run.folder}: finished already; its model is {run.model}")
                number = 0
            elif place is not None or count == 1:
                number = _run_here(run, place or Place())
            else:
                number = run_ranks(rank_command(str(run.folder)), count, logs=run.logs)
    if number:
        # Let the signal that ended the run do what it would have done at once.
        signal.raise_signal(number)


def _one_run(folder: Path) -> AbstractContextManager[None]:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, expected a folder for the run")
    return one_writer(
        folder / ".lock", busy=f"{folder}: another adapt train runs here; wait for it"
    )


def _run_here(run: RunFolder, place: Place) -> int:
    from adapt.train.session import run_rank

    stopped_by: int = run_rank(run, place)
    return stopped_by


def _num_gpus() -> int:
    import torch

    gpus: int = torch.cuda.device_count()
    return gpus
