"""The wheel: one top-level name, every shipped file, and a command that runs from it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("converters", "schemas", "recipes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.parametrize("name", LINKS)
def test_shipped_folders_are_relative_links(name: str) -> None:
    link = ROOT / "adapt" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"adapt", "adapt_vlm-0.1.0.dist-info"}
    for name in LINKS:
        tracked = subprocess.run(
            ["git", "ls-files", name], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        assert {f"adapt/{path}" for path in tracked} <= set(names)


def test_the_command_runs_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
        capture_output=True,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def adapt(*arguments: str) -> str:
        done = subprocess.run(
            [site / "bin" / "adapt", *arguments],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import adapt; print(adapt.__file__)"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()) == site / "adapt" / "__init__.py"
    assert adapt("--version") == "adapt 0.1.0\n"
    assert "drivelm: " in adapt("convert", "--list")
    assert "medical" in adapt("recipes", "list")
    adapt("recipes", "copy", "medical", "my.yaml")
    assert (empty / "my.yaml").read_bytes() == (ROOT / "recipes" / "medical.yaml").read_bytes()
