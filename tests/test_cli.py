"""The command line: help, exit statuses, and a core that does without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from adapt import cli
from adapt.errors import AdaptError, CheckFailed, EnvironmentFault, TooManySkips, UsageError
from adapt.synthetic import write_driving, write_general

HEAVY = ("torch", "transformers", "peft", "deepspeed")


def commands() -> list[list[str]]:
    """Return every command but the converters', as the words that call it."""
    found = []
    root = typer.main.get_command(cli.app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        found.append([name])
        if name != "convert":
            found += [[name, inner] for inner in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--help"]) == 0
    assert f"Usage: adapt {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_in_the_docs(words: list[str]) -> None:
    root = Path(__file__).resolve().parents[1]
    texts = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    assert any(f"adapt {' '.join(words)}" in text.read_text() for text in texts)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 2),
        (CheckFailed("x"), 1),
        (TooManySkips("x"), 3),
        (EnvironmentFault("x"), 4),
        (KeyboardInterrupt(), 130),
        (cli.Terminated(), 143),
        (ZeroDivisionError("x"), 70),
    ],
)
def test_exit_statuses(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("adapt.doctor.run_doctor", fail)
    assert cli.run(["doctor"]) == status
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == (status == 70)
    if isinstance(error, AdaptError):
        assert shown == "adapt: x\n"


def test_an_unknown_command_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["convrt"]) == 2
    assert "convert" in capsys.readouterr().err


def test_the_core_works_without_the_training_packages(tmp_path: Path) -> None:
    """Packages that fail on import stand before the real ones, in this and every worker process."""
    for name in HEAVY:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(
            f"raise ImportError('{name} is not installed')"
        )
    write_driving(tmp_path / "data/raw/drivelm", train_frames=4, val_frames=1, seed=0)
    write_general(tmp_path / "data/raw/llava", rows=40, seed=0)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "absent")}
    for arguments in (
        ["convert", "drivelm"],
        ["convert", "llava"],
        ["check", "data/domain/drivelm", "--images"],
        ["mix", "--ratio", "1:4", "--allow-repeat"],
        ["recipes", "list"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "adapt", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/mix/mix.parquet").exists()


def test_help_loads_nothing_heavy() -> None:
    """`adapt --help` answers within 0.3 s because it imports none of these."""
    script = (
        "import sys; from adapt.cli import run; run(['--help']);"
        "print([name for name in sys.modules if name in "
        "('numpy', 'PIL', 'cv2', 'pyarrow', 'polars', 'datasets', 'jsonschema', 'torch',"
        " 'transformers')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_finaliser_swallows_comes_again(name: str, status: int) -> None:
    script = f"""
import os, signal, time
from adapt import check, cli

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

def work(paths, *, images):
    Held()
    time.sleep(60)

check.check_paths = work
cli.main(["check", "x"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
