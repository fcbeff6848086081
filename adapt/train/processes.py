"""Ranks as processes of this machine: started together, watched, ended together.

    adapt train --nproc 2
      +- rank 0   on the terminal; its failure into RUN/logs/rank-0.log
      +- rank 1   into RUN/logs/rank-1.log

When one fails, the others, which would wait for it for ever, are ended, and the failure of the
first is reported. SIGINT and SIGTERM are passed on as SIGTERM; the ranks then save a checkpoint and
leave.
A rank also leaves by itself when its launcher is gone, so none is ever left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from adapt.errors import BUG, EnvironmentFault, error_of_status
from adapt.signals import stop_requests
from adapt.train.place import Place
from adapt.workers import cpu_count

ADDRESS = "127.0.0.1"
LAUNCHER = "ADAPT_LAUNCHER"
"""Environment variable with the launcher's process id."""
POLL_S = 0.05
# A rank that dies takes its peers with it; which one was first shows within this time.
BLAME_S = 1.0
# After the first failure nothing is left to save.
LEAVE_S = 5.0
_LAST_WORDS = 4096
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class RankCrashed(RuntimeError):
    """A rank ended with a traceback: a bug."""


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """Return the end of what the rank wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
            return file.read().decode(errors="replace").strip()


def run_ranks(command: Sequence[str], count: int, *, logs: Path) -> int:
    """Run `command` as `count` ranks and wait for all of them.

    Args:
        command: What each rank runs; its place is in its environment.
        count: How many.
        logs: Folder of their standard error (rank 0 writes to ours as well).

    Returns:
        0, or the signal that ended the run.

    Raises:
        AdaptError: A rank stopped with a stated error; of the same class.
        EnvironmentFault: A rank was lost.
        RankCrashed: A rank hit a bug.
    """
    logs.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks: list[_Rank] = []
    try:
        with stop_requests(then=partial(_pass_on, ranks)) as received:
            for number in range(count):
                place = Place(number, count, number, ADDRESS, port)
                ranks.append(_start(command, place, logs / f"rank-{number}.log"))
            return _wait(ranks, received)
    finally:
        _end(ranks)


def free_port() -> int:
    """Return a port nobody listens on.

    Raises:
        EnvironmentFault: There is none.
    """
    try:
        with socket.socket() as listener:
            listener.bind((ADDRESS, 0))
            return int(listener.getsockname()[1])
    except OSError as error:
        raise EnvironmentFault(f"{ADDRESS}: no free port for the ranks: {error}") from error


def leave_with(parent: int) -> None:
    """End this process when `parent` is gone; call it once at the start of a rank."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


def _start(command: Sequence[str], place: Place, log: Path) -> _Rank:
    environment = os.environ | {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        LAUNCHER: str(os.getpid()),
    }
    # Unset, torch would start as many threads for each rank as the machine has cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // place.world_size)))
    stream: IO[bytes] = log.open("wb")
    with stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if place.rank == 0 else stream,
            stderr=None if place.rank == 0 else stream,
            # Ctrl-C in a terminal reaches a whole process group: it is ours to pass on.
            process_group=0,
        )
    return _Rank(place.rank, process, log)


def _wait(ranks: Sequence[_Rank], received: Sequence[int]) -> int:
    """Wait for all ranks; return the signal that ended them, sent to us or to them, or 0."""
    while _running(ranks) and not _failed(ranks, received):
        time.sleep(POLL_S)
    deadline = time.monotonic() + BLAME_S
    while _running(ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if failed := _failed(ranks, received):
        raise _blame(min(failed, key=_blame_order), len(ranks))
    asked = [rank.process.returncode - 128 for rank in ranks if rank.process.returncode > 128]
    return [*received, *asked, 0][0]


def _running(ranks: Sequence[_Rank]) -> bool:
    return any(rank.process.poll() is None for rank in ranks)


def _failed(ranks: Sequence[_Rank], received: Sequence[int]) -> list[_Rank]:
    expected = {0, *_INTERRUPTED, *((-signal.SIGTERM,) if received else ())}
    return [rank for rank in ranks if (rank.process.poll() or 0) not in expected]


def _blame_order(rank: _Rank) -> int:
    """Sort what explains the others first: a stated error, a killed rank, a traceback.

    A traceback is often no more than "connection closed by peer".
    """
    status = rank.process.returncode
    return 0 if error_of_status(status) else 2 if status == BUG else 1


def _blame(rank: _Rank, count: int) -> Exception:
    """Return the failure that a rank's end stands for."""
    status, words = rank.process.returncode, rank.last_words()
    who = f"rank {rank.number} of {count}"
    if status == BUG:
        return RankCrashed(f"{who} crashed; {rank.log} ends:\n{words}")
    if stated_by := error_of_status(status):
        stated = words.splitlines()[-1] if words else f"{who} failed without a word"
        return stated_by(stated.removeprefix("adapt: "))
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    last = words.splitlines()[-1] if words else "none"
    return EnvironmentFault(
        f"{who} was lost ({how}); its last words in {rank.log}: {last}; start the others again "
        f"from the last checkpoint with --resume"
    )


def _end(ranks: Sequence[_Rank]) -> None:
    """End what still runs: politely, then for good."""
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.terminate()
    deadline = time.monotonic() + LEAVE_S
    while _running(ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
            rank.process.wait()


def _pass_on(ranks: Sequence[_Rank]) -> None:
    """Ask the ranks to stop; a second request to us no longer waits for their checkpoint."""
    for rank in ranks:
        if rank.process.poll() is None:
            # Never SIGINT: a rank that still imports would answer with a traceback.
            rank.process.terminate()


def rank_command(*arguments: str) -> list[str]:
    """Return the command line of a rank."""
    return [sys.executable, "-m", "adapt.train.rank", *arguments]
