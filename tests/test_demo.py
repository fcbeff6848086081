"""The demo, as it is run: it must learn from the pictures."""

from pathlib import Path

import orjson
import pytest
from PIL import Image

from adapt.cli import run
from adapt.demo import MARKER, question_type, run_demo
from adapt.errors import AdaptError, CheckFailed, EnvironmentFault
from adapt.records import Message, RecordLine, Source


def test_the_demo_learns_from_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "the trained model reads the pictures" in shown
    for command in ("convert", "check", "mix", "plan", "train", "predict", "eval"):
        assert f"$ adapt {command} " in shown
    with Image.open(out / "frame.jpg") as frame:
        assert frame.size == (2688, 896)
    report = orjson.loads((out / "answers/trained.json").read_bytes())
    assert report["counts"]["match"] == 40
    assert (out / "runs/demo/model/config.json").exists()


def test_types_of_questions() -> None:
    asked = "<image>\nOne line more.\nIs <c1,CAM_BACK,[5, 6]> nearer than <c2,CAM_FRONT,[70, 800]>?"
    turns = [Message("human", asked), Message("gpt", "Yes.")]
    source = Source("s", "val", "0")
    record = RecordLine("s/val/0", ["a.jpg"], [1], [1], turns, "multiview", source, "")
    assert question_type(record) == "Is TAG nearer than TAG?"


@pytest.mark.parametrize(("status", "kind"), [(1, CheckFailed), (4, EnvironmentFault)])
def test_a_command_that_stops_ends_the_demo_with_its_status(
    tmp_path: Path, status: int, kind: type[AdaptError]
) -> None:
    with pytest.raises(kind, match=rf"adapt convert drivelm .* ended with status {status}"):
        run_demo(tmp_path / "demo", lambda _arguments: status, seed=0)


def test_a_folder_that_is_no_demo_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "holds something that is no demo" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / MARKER).exists()
