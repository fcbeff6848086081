"""Where a process stands among the ranks of a run, and how it joins them.

started by          says where by
adapt train         RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT of our own launcher
torchrun, deepspeed the same variables
srun                SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_JOB_NODELIST
none of them        alone: no port is opened
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from adapt.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch

# Rank 0 plans while the others wait for it here.
JOIN_TIMEOUT = timedelta(hours=1)
_SLURM_PORTS = range(20000, 30000)


@dataclass(frozen=True, slots=True)
class Place:
    """A process among the ranks.

    Args:
        rank: Number among all.
        world_size: How many there are.
        local_rank: Number on this machine, that of its GPU.
        address: Machine of rank 0; empty when alone.
        port: Port of rank 0.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Return where a launcher put this process, None when no launcher did.

    Raises:
        UsageError: The launcher's variables are incomplete.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(
            rank=_number(environment, "RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
            address=_text(environment, "MASTER_ADDR"),
            port=_number(environment, "MASTER_PORT"),
        )
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    # One task is an interactive shell or a batch script as often as a rank.
    if "SLURM_PROCID" in environment and tasks != "1":
        nodes = environment.get("SLURM_STEP_NODELIST") or _text(environment, "SLURM_JOB_NODELIST")
        port = _SLURM_PORTS[_number(environment, "SLURM_JOB_ID") % len(_SLURM_PORTS)]
        return Place(
            rank=_number(environment, "SLURM_PROCID"),
            world_size=_as_number("SLURM_NTASKS", tasks),
            local_rank=_number(environment, "SLURM_LOCALID"),
            address=environment.get("MASTER_ADDR") or first_node(nodes),
            port=_as_number("MASTER_PORT", environment.get("MASTER_PORT") or str(port)),
        )
    return None


def first_node(nodes: str) -> str:
    """Return the first machine of a Slurm node list.

    >>> first_node("gpu[007-009,12],login1"), first_node("a-1,b-2")
    ('gpu007', 'a-1')
    """
    head = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if head is None:
        raise UsageError(f"SLURM_JOB_NODELIST is {nodes!r}, expected names of machines")
    return head[1] + (head[2] or "")


@contextmanager
def joined(place: Place) -> Iterator[torch.device]:
    """Join the other ranks and give this rank's device; leave them at the end.

    Raises:
        UsageError: This machine has fewer GPUs than ranks.
        EnvironmentFault: Rank 0 is out of reach.
    """
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = str(place.local_rank)
    device = torch.device("cuda", place.local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        if place.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"rank {place.rank} is number {place.local_rank + 1} on a machine with "
                f"{torch.cuda.device_count()} GPUs, a process takes one each; start fewer"
            )
        torch.cuda.set_device(device)
    backend = "nccl" if has_gpu else "gloo"
    try:
        _join(place, backend)
    except (RuntimeError, dist.DistError) as error:
        raise EnvironmentFault(
            f"rank {place.rank} of {place.world_size} cannot join the others at "
            f"{place.address}:{place.port}: {str(error).splitlines()[0]}; is the port free and "
            f"reachable from every machine?"
        ) from error
    import deepspeed.comm

    try:
        yield device
    finally:
        deepspeed.comm.destroy_process_group()


def _join(place: Place, backend: str) -> None:
    """Form the process group, and let DeepSpeed use it."""
    import torch.distributed as dist

    if place.world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        os.environ.update(
            RANK=str(place.rank),
            WORLD_SIZE=str(place.world_size),
            MASTER_ADDR=place.address,
            MASTER_PORT=str(place.port),
        )
        dist.init_process_group(backend, init_method="env://", timeout=JOIN_TIMEOUT)
    import deepspeed
    import deepspeed.ops

    if backend == "gloo":
        # It would compile a shared-memory all-reduce here, which needs a compiler and minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise UsageError(f"the launcher set RANK or SLURM_PROCID but not {name}; set it as well")
    return environment[name]


def _number(environment: Mapping[str, str], name: str) -> int:
    return _as_number(name, _text(environment, name))


def _as_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}, expected a number")
    return int(text)
