"""Finding a model: folder, workspace, hub; and originals imported once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from adapt.errors import CheckpointError, EnvironmentFault, UsageError
from adapt.models import importing
from adapt.models.exporting import export_checkpoint
from adapt.models.handle import open_model
from adapt.models.locate import Found, cache_folder, locate
from adapt.models.presets import load_preset


def checkpoint(folder: Path, kind: str = "internvl") -> Path:
    """Make a folder that looks like a native checkpoint from outside."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub unreachable, whatever this machine has in its caches."""

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "x")
    assert locate(str(folder), tmp_path) == Found(folder, "internvl", None)
    mono = checkpoint(tmp_path / "mono", "mono_internvl")
    assert locate(str(mono), tmp_path) == Found(mono, "mono", None)


def test_a_run_folder_is_its_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run" / "model")
    assert locate(str(tmp_path / "run"), tmp_path).folder == folder


def test_a_preset_without_weights_has_no_folder(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models" / "tiny")
    assert locate("tiny", tmp_path) == Found(None, "internvl", load_preset("tiny"))


def test_the_workspace_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    folder = checkpoint(tmp_path / "models" / "mono-internvl-2b", "mono_internvl")
    expected = Found(folder, "mono", load_preset("mono-internvl-2b"))
    assert locate("mono-internvl-2b", tmp_path) == expected
    assert locate("OpenGVLab/Mono-InternVL-2B", tmp_path) == expected


def test_the_hub_is_asked_for_the_presets_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "snapshot")
    asked = []

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append(repository)
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = locate("internvl3-1b-hf", tmp_path)
    assert found == Found(folder, "internvl", load_preset("internvl3-1b-hf"))
    assert locate("someone/else", tmp_path) == Found(folder, "internvl", None)
    assert asked == ["OpenGVLab/InternVL3-1B-hf", "someone/else"]


def test_an_original_folder_is_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    tiny, native, original = open_model("tiny"), tmp_path / "native", tmp_path / "InternVL2-Tiny"
    tiny.load(torch.float32, seed=3).save_pretrained(native)
    tiny.save_extras(native)
    export_checkpoint(native, original, layout="original", verify=False)
    imports = []

    def counted(source: Path, out: Path, **options: Any) -> Any:
        imports.append(source)
        return import_checkpoint(source, out, **options)

    import_checkpoint = importing.import_checkpoint
    monkeypatch.setattr(importing, "import_checkpoint", counted)
    first, second = open_model(str(original)), open_model(str(original))
    assert imports == [original]
    assert first.folder == second.folder
    assert first.folder is not None
    assert first.folder.is_relative_to(tmp_path / "cache" / "models")
    expected = open_model(str(native)).load(torch.float32).state_dict()
    loaded = first.load(torch.float32).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    # Another state of the folder is another model.
    (original / "added_tokens.json").write_text("{}")
    assert open_model(str(original)).folder != first.folder


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        open_model("mini-internvl-2b")
    assert str(caught.value) == (
        "mini-internvl-2b: no such folder, and no preset or hub id of that name "
        "(did you mean mini-internvl2-2b?); see adapt models list"
    )


@pytest.mark.parametrize("name", ["runs/nothing", "./nothing", "/no/such/folder", "a/b/c"])
def test_a_path_that_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    with pytest.raises((UsageError, EnvironmentFault), match="no "):
        open_model(name, workspace=tmp_path)


def test_offline_all_three_places_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    with pytest.raises(EnvironmentFault) as caught:
        open_model("mini-internvl2-2b", workspace=tmp_path)
    assert str(caught.value) == (
        f"model mini-internvl2-2b: none in {tmp_path}/models/mini-internvl2-2b; "
        "OpenGVLab/InternVL2-2B: no such folder, and it cannot be had from the hub (no "
        "network); fetch it elsewhere and name its folder, or try the step with "
        "--set model=tiny (--model tiny)"
    )


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        locate(str(path), tmp_path)
    assert str(caught.value) == (
        f"{path}: is a file, expected a checkpoint's folder, a preset or a hub id"
    )


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json, so it is not a checkpoint"):
        open_model(str(tmp_path))


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter, .*adapt models merge"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["llava", None, ["internvl"]])
def test_a_config_of_another_model(tmp_path: Path, kind: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError) as caught:
        open_model(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/config.json: model_type is {kind}, expected one of internvl, "
        "mono_internvl, internvl_chat: adapt trains InternVL models"
    )


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"a JSON list, expected an object"):
        open_model(str(tmp_path))


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ADAPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "adapt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adapt"
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
