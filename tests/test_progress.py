"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from adapt import progress as module
from adapt.progress import PLAIN_INTERVAL_S, progress

BAR = """
from adapt.progress import progress

with progress("convert", 3, "frames") as advance:
    for _ in range(3):
        advance(note="loss 0.5")
"""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_has_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 40, "steps", done=10) as advance:
        for _ in range(2):
            clock.now_s += PLAIN_INTERVAL_S / 2
            advance(5, note="loss 0.5")
        advance(5)
        clock.now_s += PLAIN_INTERVAL_S
    assert capsys.readouterr().err.splitlines() == [
        "train: 20/40 steps, 1.0 steps/s loss 0.5",
        "train: 25/40 steps, 0.8 steps/s",
    ]


def test_a_log_without_a_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("read", 0, "rows") as advance:
        clock.now_s += 0.5
        advance()
    assert capsys.readouterr().err == "read: 1 row, 2.0 rows/s\n"


def test_a_terminal_has_a_bar_with_a_rate() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], stderr=theirs, env=os.environ | {"COLUMNS": "100"}
    )
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:
        # How a terminal says that the other side has left.
        pass
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = text.replace("\r", "\n").strip().splitlines()[-1]
    assert re.fullmatch(r"convert ━+ +100% +3/3 +[\d.]+ frames/s +0:00:00 +loss 0\.5", last.strip())
