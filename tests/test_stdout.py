"""Commands whose reader has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_unread(*arguments: str, stderr: bool = False) -> int:
    """Run a command with a stdout, or stderr as well, that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as unread:
        command = [sys.executable, "-m", "adapt", *arguments]
        errors = unread if stderr else subprocess.PIPE
        done = subprocess.run(command, stdout=unread, stderr=errors, text=True, check=False)
    assert stderr or "Error" not in done.stderr
    return done.returncode


def test_the_work_goes_on(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "rows.json").write_text(json.dumps([{"question": "Why?", "answer": "So."}]))
    for stderr in (False, True):
        options = ("--out", str(out), "--workers", "1", "--overwrite")
        assert run_unread("convert", "llava", str(raw), *options, stderr=stderr) == 0
        assert len((out / "train.jsonl").read_bytes().splitlines()) == 1
        (out / "train.jsonl").unlink()


def test_long_lists_and_help() -> None:
    assert run_unread("convert", "--list") == 0
    assert run_unread("--help") == 0
    assert run_unread("models", "list") == 0


def test_a_mistake_keeps_its_status(tmp_path: Path) -> None:
    arguments = ("check", str(tmp_path / "nowhere"))
    assert run_unread(*arguments, stderr=True) == 2
