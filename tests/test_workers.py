"""Worker processes: all results, lost workers, a lost parent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from worker_tasks import die_at_three, double, fail_at_three

from adapt.errors import EnvironmentFault
from adapt.workers import WAITING_PER_WORKER, map_unordered

PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from adapt.workers import map_unordered
from worker_tasks import write_pid_and_wait

list(map_unordered(write_pid_and_wait, [Path(sys.argv[1])] * 2, workers=2))
"""


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_task_has_its_result(workers: int) -> None:
    found = dict(map_unordered(double, range(50), workers=workers))
    assert found == {number: 2 * number for number in range(50)}


def test_tasks_are_read_as_workers_become_free() -> None:
    read: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = map_unordered(double, tasks(), workers=2)
    next(results)
    assert len(read) == 2 * WAITING_PER_WORKER
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_is_raised(workers: int) -> None:
    with pytest.raises(ValueError, match="three"):
        list(map_unordered(fail_at_three, range(10), workers=workers))


def test_a_killed_worker_is_the_machine_s_fault() -> None:
    with pytest.raises(EnvironmentFault, match=r"a worker process was killed, often for lack of"):
        list(map_unordered(die_at_three, range(10), workers=2))


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    support = str(Path(__file__).parent / "support")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), support])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
