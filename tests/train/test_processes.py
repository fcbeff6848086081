"""The launcher, with small programs as ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from adapt.errors import AdaptError, EnvironmentFault, TooManySkips
from adapt.train.processes import RankCrashed, run_ranks


def command(program: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, signal\n{program}"]


def run(program: str, folder: Path, count: int = 2) -> int:
    return run_ranks(command(program), count, logs=folder / "logs")


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    program = (
        "names = ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'OMP_NUM_THREADS']\n"
        f"path = {str(tmp_path)!r} + '/' + os.environ['RANK']\n"
        "open(path, 'w').write(' '.join(os.environ[name] for name in names))"
    )
    assert run(program, tmp_path, count=3) == 0
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    found = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert found == [f"{rank} 3 {rank} 127.0.0.1 {threads}" for rank in range(3)]


def test_a_lost_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    program = (
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "if os.environ['RANK'] == '1':\n"
        "    print('reading pack 7', file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(600)"
    )
    with pytest.raises(EnvironmentFault, match=r"rank 1 of 2 was lost \(killed by signal 9\).*7"):
        run(program, tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "0").read_text()))


def test_a_stated_error_keeps_its_words_and_status(tmp_path: Path) -> None:
    # Rank 0 falls over because its peer is gone; the peer's own words are what counts.
    program = (
        "if os.environ['RANK'] == '1':\n"
        "    print('noise', file=sys.stderr)\n"
        "    print('record a/b/3: its picture is missing', file=sys.stderr)\n"
        "    sys.exit(3)\n"
        "sys.exit(70)"
    )
    with pytest.raises(TooManySkips) as caught:
        run(program, tmp_path)
    assert str(caught.value) == "record a/b/3: its picture is missing"


def test_a_traceback_stays_a_bug(tmp_path: Path) -> None:
    program = (
        "if os.environ['RANK'] == '1':\n"
        "    print('Traceback\\nValueError: x', file=sys.stderr)\n"
        "    sys.exit(70)"
    )
    with pytest.raises(RankCrashed, match="ValueError: x") as caught:
        run(program, tmp_path)
    assert not isinstance(caught.value, AdaptError)


LAUNCHER = """
import sys
from pathlib import Path
from adapt.train.processes import run_ranks
sys.exit(run_ranks(sys.argv[2:], 2, logs=Path(sys.argv[1])))
"""
POLITE = (
    "def leave(number, frame):\n"
    "    open(folder + '/left' + os.environ['RANK'], 'w')\n"
    "    sys.exit(128 + number)\n"
    "signal.signal(signal.SIGTERM, leave)\n"
    "signal.signal(signal.SIGINT, leave)\n"
)


def launch(folder: Path, program: str) -> subprocess.Popen[bytes]:
    start = f"folder = {str(folder)!r}\n{program}"
    wait = "open(folder + '/' + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    ranks = command(start + wait)
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder / "logs"), *ranks])
    for rank in "01":
        path = folder / rank
        while not path.exists() or not path.read_text():
            assert process.poll() is None
            time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_ranks(tmp_path: Path, number: int) -> None:
    launcher = launch(tmp_path, POLITE)
    launcher.send_signal(number)
    assert launcher.wait() == number
    assert (tmp_path / "left0").exists()
    assert (tmp_path / "left1").exists()


def test_a_signal_to_the_ranks_alone_ends_the_run_as_well(tmp_path: Path) -> None:
    launcher = launch(tmp_path, POLITE)
    for rank in "01":
        os.kill(int((tmp_path / rank).read_text()), signal.SIGTERM)
    assert launcher.wait() == signal.SIGTERM


def test_a_rank_that_still_starts_leaves_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # No handlers yet: Python itself would answer SIGINT with a KeyboardInterrupt.
    launcher = launch(tmp_path, "")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait() == signal.SIGINT
    assert capfd.readouterr().err == ""
    assert (tmp_path / "logs/rank-1.log").read_text() == ""


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    program = (
        "from adapt.train.processes import LAUNCHER, leave_with\n"
        "leave_with(int(os.environ[LAUNCHER]))\n"
    )
    launcher = launch(tmp_path, program)
    ranks = [psutil.Process(int((tmp_path / rank).read_text())) for rank in "01"]
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []
