"""Finding converters, their options and versions; converters of other packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shapes_runs import (
    convert,
    install_plugin,
    make_raw,
    manifest,
    write_rows,
)

from adapt import __version__
from adapt.cli import run


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(monkeypatch)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def test_a_converter_without_parts_is_counted_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    rows: list[dict[str, Any]] = [{"question": f"q{i}", "answer": "a"} for i in range(600)]
    rows[3] = {"question": "q", "answer": ""}
    rows[4] = {"other": True}
    (raw / "list.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    arguments = ["convert", "listing", str(raw), "--out", str(out)]
    assert run([*arguments, "--max-skips", "1"]) == 0
    ledger = manifest(out)["splits"]["train"]["ledger"]
    assert [ledger[key] for key in ("units_in", "used", "skipped", "not_in_split")] == [
        600,
        598,
        1,
        1,
    ]
    assert run([*arguments, "--limit", "10", "--max-skips", "1", "--overwrite"]) == 0
    assert manifest(out)["splits"]["train"]["ledger"]["units_in"] == 10


@pytest.mark.parametrize("workers", ["1", "2"])
def test_duplicate_ids_are_bugs_of_the_converter(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    rows = [{"name": f"s{i}", "colour": "red", "id": "first"} for i in range(2)]
    write_rows(raw, "train", rows)
    assert convert(raw, tmp_path / "out", "--split", "train", "--workers", workers) == 70
    assert (
        "RuntimeError: converter shapes yields the id shapes/train/first twice (shape 1); ids must "
        "be unique"
    ) in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_wrong_counts_are_bugs_of_the_converter(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shapes_converter

    from adapt.records import Part

    def miscounted(raw: Path, split: str, **_: object) -> list[Part]:
        rows = json.loads((raw / f"{split}.json").read_text())
        return [Part(f"shape {i}", 2, (i, row)) for i, row in enumerate(rows)]

    monkeypatch.setattr(shapes_converter, "parts", miscounted)
    assert convert(raw, tmp_path / "out", "--workers", "1") == 70
    assert "units do not add up" in capsys.readouterr().err


def test_without_named_sources_a_new_file_is_another_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "list.json").write_text('[{"question": "Q?", "answer": "A"}]')
    command = ["convert", "listing", str(raw), "--out", str(out)]
    assert run(command) == 0
    assert manifest(out)["converter"] == {"name": "listing", "version": "1.0"}
    assert sorted(manifest(out)["splits"]["train"]["made_by"]["inputs"]) == ["*", "list.json"]
    assert run(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    (raw / "new.jpg").write_bytes(b"1")
    assert run(command) == 2
    assert "other input (*); --overwrite replaces it" in capsys.readouterr().err


def install(folder: Path, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register entry points as a package of version 2.5 in `folder` does."""
    info = folder / "other_plugin-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[adapt.converters]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_converter_that_cannot_be_imported_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "broken = broken_plugin_module", monkeypatch)
    assert run(["convert", "broken", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "adapt: converter broken: broken_plugin_module 2.5 cannot be imported (No module named "
        "'broken_plugin_module'); install what it needs, or uninstall it\n"
    )


def test_a_plug_in_that_fails_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing_converter.py").write_text("1 / 0\n")
    install(tmp_path, "failing = failing_converter\nllava = their_llava", monkeypatch)
    failing = (
        "converter failing: failing_converter 2.5 cannot be imported (ZeroDivisionError: division "
        "by zero); install what it needs, or uninstall it"
    )
    clash = (
        f"converter llava: their_llava 2.5 has the name of adapt.converters.llava {__version__}; "
        "uninstall one, or rename its entry point"
    )
    assert run(["convert", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert failing in listed
    assert clash in listed
    assert "  multi-view; domain, driving; splits train, val" in listed
    assert run(["convert", "--help"]) == 0
    helped = capsys.readouterr().out
    assert "drivelm" in helped
    assert "failing" not in helped
    for name, message in (("failing", failing), ("llava", clash)):
        assert run(["convert", name, str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"adapt: {message}\n"
    assert run(["convert", "drivelm", "--help"]) == 0


def test_list_and_help_name_outside_converters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "--list"]) == 0
    assert "shapes: Shapes: an outside converter for tests" in capsys.readouterr().out
    assert run(["convert", "shapes", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--style" in shown
    assert "Form of the question." in shown
