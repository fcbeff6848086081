"""A rank as a process of its own: `python -m adapt.train.rank RUN`.

Our launcher starts it; its place is in the environment. What it fails of goes into RUN/logs, where
the launcher looks for its last words.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from adapt.errors import BUG, AdaptError
from adapt.run_paths import RunFolder
from adapt.stdout import outlive_readers
from adapt.train.place import find_place
from adapt.train.processes import LAUNCHER, leave_with
from adapt.train.session import run_rank


def main(folder: str) -> int:
    """Run a rank of the run in `folder` and return its exit status."""
    run = RunFolder(Path(folder))
    place = find_place(os.environ)
    assert place is not None
    leave_with(int(os.environ[LAUNCHER]))
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    log = run.logs / f"rank-{place.rank}.log"
    try:
        stopped_by = run_rank(run, place)
        return 128 + stopped_by if stopped_by else 0
    except AdaptError as error:
        _append(log, str(error))
        return error.exit_status
    except Exception:  # noqa: BLE001  told to the launcher, which ends the run with it
        _append(log, traceback.format_exc())
        return BUG


def leave(folder: str) -> NoReturn:
    """Run a rank and end its process, without taking the interpreter apart.

    All files are closed and the group is left by then. What is torn down later, threads of the
    communication library among it, now and then aborts a rank whose work is done.
    """
    outlive_readers()
    try:
        status = main(folder)
    except SystemExit as asked:
        status = int(asked.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(f"{text.rstrip()}\n")


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    leave(*sys.argv[1:])
