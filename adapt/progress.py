"""Progress of long work: a bar with a rate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL_S = 10.0


class Advance(Protocol):
    """Report that `steps` more are done; `note` replaces the text behind the rate."""

    def __call__(self, steps: int = 1, *, note: str = "") -> None:
        """Report progress."""
        ...


@contextmanager
def progress(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` steps (0: unknown) called `unit`, `done` of them behind."""
    if sys.stderr.isatty():
        with _bar(title, total, unit, done) as advance:
            yield advance
    else:
        plain = _PlainLines(title, total, unit, done)
        yield plain
        plain.finish()


class _PlainLines:
    """A line now and then, for logs."""

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._before = self._done = done
        self._start = self._last = time.monotonic()
        self._note = ""

    def __call__(self, steps: int = 1, *, note: str = "") -> None:
        self._done += steps
        self._note = note
        if time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self._print()

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        elapsed_s = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._before) / elapsed_s
        total = f"/{self._total}" if self._total else ""
        unit = self._unit if total or self._done != 1 else self._unit.removesuffix("s")
        print(
            f"{self._title}: {self._done}{total} {unit}, "
            f"{rate:.1f} {self._unit}/s {self._note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total or None, completed=done, rate="", note="")
        behind = 0

        def advance(steps: int = 1, *, note: str = "") -> None:
            nonlocal behind
            behind += steps
            rate = behind / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=steps, rate=f"{rate:.1f} {unit}/s", note=note)

        yield advance
