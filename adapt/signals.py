"""SIGINT and SIGTERM, noticed now and obeyed when the work in hand allows it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_requests(then: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is given; the second one acts at once.

    One that this process was started to ignore (`nohup`, a script's `&`) stays ignored.

    Args:
        then: Called at each first request.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        if then is not None:
            then()

    before: dict[int, Any] = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM act only after the block, where they could act: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with stop_requests() as received:
        yield
    if received:
        signal.raise_signal(received[0])
