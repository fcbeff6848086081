"""Map a function over tasks in worker processes, in order of completion.

Workers end with their parent, whatever ends it; a lost worker is an error, never a hang.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for_handles
from typing import TypeVar

from adapt.errors import EnvironmentFault
from adapt.signals import held_back

WAITING_PER_WORKER = 4

TaskType = TypeVar("TaskType")
ResultType = TypeVar("ResultType")


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_unordered(
    function: Callable[[TaskType], ResultType],
    tasks: Iterable[TaskType],
    *,
    workers: int,
    preload: tuple[str, ...] = (),
) -> Iterator[tuple[TaskType, ResultType]]:
    """Yield (task, result) as they complete; `tasks` is read as workers become free.

    Args:
        function: Top-level function of one task.
        tasks: Picklable tasks.
        workers: Processes; 1 does the work in this process.
        preload: Modules that the workers share from the start, imported once for all of them.

    Raises:
        EnvironmentFault: A worker was killed (memory, usually).
    """
    if workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    executor = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=context,
        initializer=_start_worker,
    )
    try:
        yield from _drain(executor, function, iter(tasks), workers * WAITING_PER_WORKER)
    except BrokenProcessPool as error:
        raise EnvironmentFault(
            "a worker process was killed, often for lack of memory; "
            "run the same command again to go on, with fewer --workers if it repeats"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _drain(
    executor: ProcessPoolExecutor,
    function: Callable[[TaskType], ResultType],
    tasks: Iterator[TaskType],
    window: int,
) -> Iterator[tuple[TaskType, ResultType]]:
    running: dict[Future[ResultType], TaskType] = {}
    while True:
        for task in islice(tasks, window - len(running)):
            # The first one starts the workers, which must not be cut short: half started, each
            # would end with a traceback of its own.
            with held_back():
                running[executor.submit(function, task)] = task
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            yield task, future.result()


def _start_worker() -> None:
    # The parent handles Ctrl-C for all; a worker only has to notice that the parent is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_handles([parent.sentinel])
        os._exit(1)
