"""One process at a time writes a place."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from adapt.errors import EnvironmentFault, UsageError
from adapt.one_writer import one_writer

BUSY = "somebody writes here"
COUNT = """
import sys
from pathlib import Path
from adapt.one_writer import one_writer

lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(200):
    with one_writer(lock, busy=None):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from adapt.one_writer import one_writer

with one_writer(Path(sys.argv[1]), busy=None):
    print("held", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "made" / "here" / "lock"
    with one_writer(lock, busy=BUSY):
        assert lock.read_bytes() == b""
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_stays(tmp_path: Path) -> None:
    with one_writer(tmp_path / "made" / "lock", busy=BUSY):
        (tmp_path / "made" / "result").write_text("r")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["result"]


def test_a_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with one_writer(lock, busy=BUSY):
        with pytest.raises(UsageError, match=BUSY), one_writer(lock, busy=BUSY):
            pass
        assert lock.exists()
    with one_writer(lock, busy=BUSY):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError), one_writer(lock, busy=BUSY):
            pass
        process.kill()
    assert lock.exists()
    with one_writer(lock, busy=BUSY):
        pass
    assert not lock.exists()


def test_three_that_wait_take_turns(tmp_path: Path) -> None:
    """The file is removed each time, so most turns meet one that has just gone."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "folder" / "lock"), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "600"


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with one_writer(tmp_path / "out" / "lock", busy=BUSY):
        pass
    assert capsys.readouterr().err == (
        f"adapt: {tmp_path}/out: its file system has no locks; make sure that nothing else writes "
        f"here\n"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EnvironmentFault, match=r"file/out: cannot be written: Not a directory"),
        one_writer(tmp_path / "file" / "out" / "lock", busy=BUSY),
    ):
        pass


def test_a_folder_behind_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted" / "disk")
    for folder in (tmp_path / "disk", tmp_path / "disk" / "deeper"):
        with (
            pytest.raises(EnvironmentFault, match=r"disk: is a link to .*, which is not there"),
            one_writer(folder / "lock", busy=BUSY),
        ):
            pass


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere" / "file")
    with pytest.raises(EnvironmentFault), one_writer(tmp_path / "lock", busy=BUSY):
        pass
