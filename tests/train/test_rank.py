"""A rank's process: how it ends."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("work", "status"), [("return 0", 0), ("return 70", 70), ("sys.exit(143)", 143)]
)
def test_nothing_that_ends_with_the_interpreter_changes_the_status(work: str, status: int) -> None:
    program = f"""
import atexit, os, sys
from adapt.train import rank

def main(folder):
    print("done", folder)
    {work}

atexit.register(os.abort)
rank.main = main
rank.leave("runs/a")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "done runs/a\n")
