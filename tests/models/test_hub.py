"""Checkpoints named on the command line."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from adapt.errors import EnvironmentFault, UsageError
from adapt.models.hub import checkpoint_folder


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of the hub; it answers with a folder."""
    calls = []

    def answer(repository, *, allow_patterns):
        calls.append((repository, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return calls


def test_folder_comes_first(tmp_path, asked):
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    assert asked == []


def test_preset_in_the_workspace_comes_before_the_hub(tmp_path, asked):
    local = tmp_path / "models" / "mini-internvl2-1b"
    local.mkdir(parents=True)
    assert checkpoint_folder("mini-internvl2-1b", workspace=tmp_path) == local
    assert asked == []


@pytest.mark.parametrize("name", ["mini-internvl2-1b", "OpenGVLab/InternVL2-1B"])
def test_hub_gives_no_code_and_no_pickles(tmp_path, asked, name):
    assert checkpoint_folder(name, workspace=tmp_path) == tmp_path / "snapshot"
    [(repository, patterns)] = asked
    assert repository == "OpenGVLab/InternVL2-1B"
    assert patterns == ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def test_hub_out_of_reach(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(EnvironmentFault, match=r"OpenGVLab/InternVL2-2B: no such folder, and it c"):
        checkpoint_folder("OpenGVLab/InternVL2-2B", workspace=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini-internvl2-1c", r"did you mean mini-internvl2-1b\?"),
        ("tiny", r"tiny: this preset has no weights to fetch"),
        ("./OpenGVLab/InternVL2-2B", r"no such folder, and no preset or hub id"),
        ("../a", r"no such folder, and no preset or hub id"),
    ],
)
def test_nothing_of_that_name(tmp_path, asked, name, message):
    with pytest.raises(UsageError, match=message):
        checkpoint_folder(name, workspace=tmp_path)
    assert asked == []
