"""Answers of the tiny model on the CPU."""

from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from adapt.answer import Answerer, Tiling
from adapt.errors import AdaptError, RecordError, SourceError, UsageError
from adapt.jsonl import read_json, write_lines
from adapt.models.handle import open_model
from adapt.one_writer import one_writer
from adapt.options import as_plain
from adapt.predict import PredictOptions, choose_tiling, run_predict
from adapt.prediction_file import about_path, weights_digest
from adapt.recipe import Recipe
from adapt.records import Message, RecordLine, Source
from adapt.resources import schema_path

COUNT = 11


def make_record(index: int) -> RecordLine:
    """No, one or two pictures; one or two turns; the last answer missing at times."""
    pictures = index % 3
    turns = [
        Message("human", "<image>\n" * pictures + f"What is number {index}? " + "Why? " * index),
        Message("gpt", "" if index % 4 == 3 else f"It is {index}."),
    ]
    if index % 5 == 4:
        turns = [*turns[:1], Message("gpt", "Hm."), Message("human", "And?"), turns[1]]
    return RecordLine(
        id=f"things/val/{index}",
        image=[f"images/{number}.png" for number in range(pictures)],
        width_list=[96, 64][:pictures],
        height_list=[48, 64][:pictures],
        conversations=turns,
        task="vqa",
        source=Source("things", "val", str(index)),
        extra="",
    )


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset folder with one records file; the working folder is beside it."""
    (tmp_path / "things" / "images").mkdir(parents=True)
    for number, size in enumerate([(48, 96), (64, 64)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "things" / "images" / f"{number}.png")
    write_lines(tmp_path / "things" / "val.jsonl", map(make_record, range(COUNT)))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "things" / "val.jsonl"


def predict(records: Path, out: str = "answers.jsonl", **options) -> list[dict]:
    settings = {"model": "tiny", "device": "cpu", "max_new_tokens": 6, "max_tiles": 2, **options}
    path = run_predict(PredictOptions(records=records, out=Path(out), **settings))
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def test_one_line_a_record_in_their_order(things: Path) -> None:
    rows = predict(things)
    assert [row["id"] for row in rows] == [f"things/val/{index}" for index in range(COUNT)]
    schema = read_json(schema_path("prediction"))
    for row in rows:
        jsonschema.validate(row, schema)
    handle = open_model("tiny")
    fifth = rows[4]
    tokens = handle.encode_prompt(make_record(4).conversations, [3])
    assert fifth | {"answer": ""} == {
        "id": "things/val/4",
        "question": "And?",
        "answer": "",
        "gt_answer": "It is 4.",
        "source": {"dataset": "things", "split": "val", "row": "4"},
        "model": "tiny",
        "prompt_tokens": len(tokens),
        "answer_tokens": fifth["answer_tokens"],
        "finish": fifth["finish"],
    }
    assert rows[3]["gt_answer"] == ""
    assert not Path(".answers.jsonl.partial").exists()


def test_answers_do_not_depend_on_the_batch(things: Path) -> None:
    alone = predict(things, "one.jsonl", batch_size=1, max_new_tokens=12)
    assert len({row["answer"] for row in alone}) > 1
    for size in (4, 64):
        assert predict(things, f"{size}.jsonl", batch_size=size, max_new_tokens=12) == alone


def test_an_answer_is_the_greedy_one(things: Path) -> None:
    """Against whole forward passes, token after token, without cache, padding or generate."""
    from adapt.tiling import load_tiles, record_grids
    from adapt.train.packed_model import normalise

    rows = predict(things, batch_size=4)
    handle = open_model("tiny")
    model = handle.load(torch.float32).eval()
    for index in (0, 1, 2, 4):
        record = make_record(index)
        grids = record_grids(record.width_list, record.height_list, record.task, max_tiles=2)
        paths = [things.parent / image for image in record.image]
        tiles = [load_tiles(path, grid) for path, grid in zip(paths, grids, strict=True)]
        inputs = {}
        if tiles:
            pixels = normalise(torch.from_numpy(np.concatenate(tiles)), torch.float32)
            inputs["pixel_values"] = pixels
        tokens = handle.encode_prompt(record.conversations, [len(part) for part in tiles])
        answer: list[int] = []
        with torch.no_grad():
            while len(answer) < 6:
                row = torch.tensor([tokens + answer])
                token = int(model(input_ids=row, use_cache=False, **inputs).logits[0, -1].argmax())
                if token in handle.stop_token_ids:
                    break
                answer.append(token)
        assert rows[index]["answer_tokens"] == len(answer)
        assert rows[index]["finish"] == ("stop" if len(answer) < 6 else "length")
        expected = handle.tokenizer.decode(answer, skip_special_tokens=False).strip()
        assert rows[index]["answer"] == expected


class Killed(BaseException):
    """As sudden as SIGKILL."""


def test_going_on_keeps_what_is_there(things: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predict(things, "whole.jsonl", batch_size=2)
    right, calls = Answerer.answer, []

    def answer(self, batch):
        calls.append(len(batch.prompts))
        if len(calls) == 4:
            raise Killed
        return right(self, batch)

    monkeypatch.setattr("adapt.predict.WINDOW_BATCHES", 1)
    monkeypatch.setattr(Answerer, "answer", answer)
    with pytest.raises(Killed):
        predict(things, batch_size=2)
    partial = Path(".answers.jsonl.partial")
    assert len(partial.read_bytes().splitlines()) == 6
    assert not Path("answers.jsonl").exists()
    # A line cut off by the end of the process is made again.
    with partial.open("ab") as file:
        file.write(b'{"id": "things/val/6", "quest')
    calls[:] = [0] * 4
    assert predict(things, batch_size=2) == expected
    assert sum(calls[4:]) == COUNT - 6
    calls[:] = [0] * 4
    assert predict(things, batch_size=3) == expected
    assert calls[4:] == []


def test_more_records_go_on_after_a_limit(things: Path) -> None:
    assert [row["id"] for row in predict(things, limit=2)] == ["things/val/0", "things/val/1"]
    assert len(predict(things, limit=7)) == 7
    assert predict(things) == predict(things, "again.jsonl")


def test_answers_made_otherwise_are_never_mixed_in(things: Path) -> None:
    first = predict(things, limit=3)
    with pytest.raises(UsageError, match=r"max_new_tokens was 6, is 7.*--overwrite"):
        predict(things, max_new_tokens=7)
    about = Path("answers.jsonl.about.json")
    written = about.read_text()
    # Begun on a GPU.
    about.write_text(written.replace('"float32"', '"bfloat16"'))
    with pytest.raises(UsageError, match=r"dtype was bfloat16, is float32"):
        predict(things)
    about.write_text(written)
    with pytest.raises(UsageError, match=r"max_tiles was 2, is 1"):
        predict(things, max_tiles=1)
    changed = [make_record(index) for index in range(COUNT)]
    write_lines(things, [changed[1], *changed[1:]])
    with pytest.raises(RecordError, match=r"answers\.jsonl:1: answers things/val/0"):
        predict(things)
    kept = Path("answers.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line) for line in kept] == first
    rows = predict(things, overwrite=True)
    assert [row["id"] for row in rows][:2] == ["things/val/1", "things/val/1"]


def test_two_processes_do_not_write_one_file(things: Path) -> None:
    with (
        one_writer(Path(".answers.jsonl.lock"), busy=None),
        pytest.raises(UsageError, match=r"answers\.jsonl: another adapt predict is writing it"),
    ):
        predict(things)
    assert sorted(path.name for path in Path().iterdir()) == ["things"]


def test_a_file_of_unknown_origin_is_left_alone(things: Path) -> None:
    Path("answers.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match=r"nothing says how its answers were made"):
        predict(things)
    assert Path("answers.jsonl").read_text() == "mine\n"


def test_a_changed_model_is_another_model(things: Path, tmp_path: Path) -> None:
    handle = open_model("tiny")
    folder = tmp_path / "mine"
    model = handle.load(torch.float32, seed=1)
    model.save_pretrained(folder)
    handle.save_extras(folder)
    predict(things, model="mine", limit=2)
    digest = weights_digest(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(folder)
    assert weights_digest(folder) != digest
    with pytest.raises(UsageError, match="weights was"):
        predict(things, model="mine", limit=3)


def test_pictures_are_cut_as_in_training(things: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "plan").mkdir(parents=True)
    (run / "model").mkdir()
    recipe = Recipe(name="r", max_tiles=5, min_tiles=2, thumbnail=False)
    (run / "recipe.yaml").write_text(yaml.safe_dump(as_plain(recipe)))
    for model in ("run", "run/model"):
        options = PredictOptions(records=things, model=model, out=Path("o"))
        assert choose_tiling(options) == Tiling(5, 2, False)
    asked = PredictOptions(records=things, model="run", out=Path("o"), max_tiles=1)
    assert choose_tiling(asked) == Tiling(1, 1, False)
    assert choose_tiling(PredictOptions(records=things, model="tiny", out=Path("o"))) == Tiling(12)


@pytest.mark.parametrize(
    ("options", "kind", "problem"),
    [
        ({"batch_size": 0}, UsageError, "--batch-size 0: expected at least 1"),
        ({"limit": -1}, UsageError, "--limit -1"),
        ({"max_tiles": 0}, UsageError, "--max-tiles 0"),
        ({"model": "tinny"}, UsageError, "tiny"),
        ({"out": "things"}, UsageError, "things: is a folder"),
        ({"records": Path("nowhere.jsonl")}, SourceError, r"nowhere\.jsonl: no such"),
    ],
)
def test_mistakes(things: Path, options: dict, kind: type[AdaptError], problem: str) -> None:
    with pytest.raises(kind, match=problem):
        predict(**{"records": things, **options})
    assert sorted(path.name for path in Path().iterdir()) == ["things"]


def test_a_damaged_picture_stops_and_keeps_the_answers(things: Path) -> None:
    (things.parent / "images" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(RecordError, match=r"record things/val/\d+: .*1\.png: .*; mend it"):
        predict(things, batch_size=1)
    left = sorted(path.name for path in Path().iterdir())
    assert left == [".answers.jsonl.partial", "answers.jsonl.about.json", "things"]


def test_a_text_that_cannot_be_asked_names_its_record_and_leaves_nothing(things: Path) -> None:
    turns = [Message("human", "What is <IMG_CONTEXT>?"), Message("gpt", "?")]
    write_lines(things, [msgspec.structs.replace(make_record(0), conversations=turns)])
    with pytest.raises(RecordError, match=r"record things/val/0: conversations\[0\] spells"):
        predict(things)
    assert sorted(path.name for path in Path().iterdir()) == ["things"]


def test_a_folder_of_several_splits_needs_a_choice(things: Path) -> None:
    assert len(predict(things.parent)) == COUNT
    write_lines(things.with_name("test.jsonl"), [make_record(0)])
    with pytest.raises(UsageError, match=r"several records files \(test\.jsonl, val\.jsonl\)"):
        predict(things.parent, "other.jsonl")


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_records_are_never_the_predictions_file(things: Path, overwrite: bool) -> None:
    before = things.read_bytes()
    with pytest.raises(UsageError, match=r"things/val\.jsonl: holds the records; name another"):
        predict(things, out="things/../things/val.jsonl", overwrite=overwrite)
    assert things.read_bytes() == before


@pytest.mark.parametrize("about", ["[]", "{", ""])
def test_what_answers_were_made_with_must_be_readable(things: Path, about: str) -> None:
    predict(things, limit=2)
    about_path(Path("answers.jsonl")).write_text(about)
    with pytest.raises(UsageError) as caught:
        predict(things, limit=2)
    assert str(caught.value) == (
        "answers.jsonl: is there, and nothing says how its answers were made "
        "(answers.jsonl.about.json is damaged); --overwrite discards it"
    )
