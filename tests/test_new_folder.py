"""Folders that appear whole or not at all."""

from pathlib import Path

import pytest

from adapt.errors import CheckpointError, EnvironmentFault
from adapt.new_folder import new_folder


def test_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_a_failure(tmp_path, failure):
    def write() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise failure

    with pytest.raises(failure):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_what_is_there_is_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out: is there already"), new_folder(out):
        pass
    assert (out / "mine").read_text() == "mine"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(EnvironmentFault, match=r"cannot be written"),
        new_folder(tmp_path / "out" / "deeper"),
    ):
        pass


def test_the_folders_above_go_too_after_a_failure(tmp_path):
    (tmp_path / "there").mkdir()

    def write() -> None:
        with new_folder(tmp_path / "there" / "deep" / "deeper" / "out"):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_points_to_is_made(tmp_path, there):
    if there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "a").read_text() == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_the_current_folder_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path):
        with (
            pytest.raises(
                CheckpointError, match=r"is the current folder or a mount point, .* in it"
            ),
            new_folder(out),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
