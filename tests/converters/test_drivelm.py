"""The drivelm converter: whole frames and splits, small ones made here and the real sample."""

import inspect
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivelm_texts import C1, C2, CAMERAS, IMPORTANT
from PIL import Image

from adapt.cli import run
from adapt.converters import drivelm
from adapt.converters._drivelm_rules import OPTIONS_PHRASE
from adapt.converters._drivelm_tags import to_original
from adapt.errors import UsageError
from adapt.mosaic import Mosaic
from adapt.records import Record, Result, UnitsRead

Json = dict[str, Any]
Annotations = MakeFrame = Callable[..., dict[str, Any]]
WriteRaw = Callable[..., Path]
Convert = Callable[..., list[Result]]
Records = Callable[..., list[Record]]


def human(question: str) -> str:
    return f"<image>\n{drivelm.PROMPT}\n{question}"


class TestRecords:
    def test_the_first_is_whole(self, raw: Path, records: Records) -> None:
        record = records(raw)[0]
        assert record.id == "drivelm/train/s1_f1_0"
        assert record.source_row() == "s1_f1_0"
        assert record.task == "multiview"
        assert [(turn.speaker, turn.text) for turn in record.turns] == [
            ("human", human(IMPORTANT)),
            (
                "gpt",
                "There is a brown SUV and a green light: "
                "<c1,CAM_BACK,[560, 776]><box>[[535, 724, 588, 829]]</box> and "
                "<c2,CAM_FRONT,[551, 0]><box>[[474, 0, 636, 95]]</box>.",
            ),
        ]
        assert json.loads(record.extra) == {
            "tag": [2],
            "question": IMPORTANT,
            "answer": f"There is a brown SUV and a green light: {C1} and {C2}.",
            "scene": "s1",
            "frame": "f1",
            "family": "perception",
        }
        assert (record.dropped, record.notes) == ((), ())

    def test_one_mosaic_a_frame(self, raw: Path, records: Records) -> None:
        found = records(raw, quality=77)
        mosaics = {record.image for record in found}
        assert len(mosaics) == 2
        (mosaic,) = found[0].image
        assert mosaic == Mosaic(
            tuple((camera, raw / f"nuscenes/samples/{camera}/f1.jpg") for camera in CAMERAS),
            "images/s1_f1.jpg",
            quality=77,
        )
        assert isinstance(mosaic, Mosaic)
        assert Image.open(io.BytesIO(mosaic.make())).size == (2688, 896)

    def test_questions_are_numbered_over_the_families(self, raw: Path, records: Records) -> None:
        assert [record.id.rsplit("_", 1)[1] for record in records(raw)] == [*"012345"] * 2

    def test_the_prompt_is_the_papers(self, shared: Path) -> None:
        (paper,) = (shared / "papers").glob("000_*.txt")
        assert drivelm.PROMPT in paper.read_text()

    def test_every_question_has_the_prompt(self, raw: Path, records: Records) -> None:
        for record in records(raw):
            assert record.turns[0].text.startswith(human(""))

    def test_without_boxes(self, raw: Path, records: Records) -> None:
        record = records(raw, boxes=False)[0]
        assert record.turns[1].text == (
            "There is a brown SUV and a green light: "
            "<c1,CAM_BACK,[560, 776]> and <c2,CAM_FRONT,[551, 0]>."
        )

    def test_boxes_only_where_the_important_objects_are_asked_for(
        self, raw: Path, records: Records
    ) -> None:
        found = [record.turns[1].text for record in records(raw)]
        assert [("<box>" in text) for text in found] == [True, *[False] * 5] * 2
        assert found[3] == "Firstly <c2,CAM_FRONT,[551, 0]>, then <c1,CAM_BACK,[560, 776]>."

    def test_traffic_elements_are_converted_and_empty_ones_dropped(
        self, raw: Path, records: Records
    ) -> None:
        record = records(raw)[2]
        assert record.turns[1].text == "There are two: [(traffic light, green, 474, 0, 484, 61)]."
        assert [(each.place, each.reason) for each in record.dropped] == [
            ("(traffic light, red, 9.0, 9.0, 9.0, 12.0)", "box-empty")
        ]

    def test_the_way_back(self, raw: Path, records: Records) -> None:
        assert to_original(records(raw)[0].turns[1].text) == (
            "There is a brown SUV and a green light: <c1,CAM_BACK,1088.0,496.8> and "
            "<c2,CAM_FRONT,1044.8,0.0>."
        )

    def test_the_challenges_tags(self, raw: Path, records: Records) -> None:
        tags = [json.loads(record.extra).get("tag") for record in records(raw)[:6]]
        assert tags == [[2], [0], None, [3], [1], [0]]

    def test_convert_is_the_parts_in_order(self, raw: Path, converted: Convert) -> None:
        results = list(drivelm.convert(raw, "train"))
        assert [each for each in results if not isinstance(each, UnitsRead)] == converted(raw)
        assert [each.units for each in results if isinstance(each, UnitsRead)] == [6, 6]

    def test_null_status_is_fine_and_the_same_twice(self, raw: Path, records: Records) -> None:
        assert records(raw) == records(raw)


class TestChoices:
    def test_lettered(self, raw: Path, records: Records) -> None:
        moving, behaviour = (records(raw)[index] for index in (1, 5))
        asked = f"What is the moving status of object <c1,CAM_BACK,[560, 776]>? {OPTIONS_PHRASE}"
        assert moving.turns[0].text.startswith(human(asked))
        extra = json.loads(moving.extra)
        assert moving.turns[1].text == extra["answer"]
        assert extra["options"]["ABCD".index(extra["answer"])] == "Turn left."
        assert extra["question"].startswith(
            f"What is the moving status of object {C1}? {OPTIONS_PHRASE} A. "
        )
        assert extra["tag"] == [0]
        assert behaviour.turns[1].text in "ABCD"
        assert len(records(raw)) == 12

    def test_open(self, raw: Path, records: Records) -> None:
        moving = records(raw, choices="open")[1]
        assert moving.turns[1].text == "Turn left."
        assert "options" not in json.loads(moving.extra)
        assert moving.notes == ()

    def test_both(self, raw: Path, records: Records) -> None:
        found = records(raw, choices="both")
        assert [record.id.removeprefix("drivelm/train/") for record in found[:8]] == [
            "s1_f1_0",
            "s1_f1_1",
            "s1_f1_1#mc",
            "s1_f1_2",
            "s1_f1_3",
            "s1_f1_4",
            "s1_f1_5",
            "s1_f1_5#mc",
        ]
        opened, lettered = found[1], found[2]
        assert (opened.source_row(), lettered.source_row()) == ("s1_f1_1", "s1_f1_1")
        # The challenge scores the letter only.
        assert "tag" not in json.loads(opened.extra)
        assert json.loads(lettered.extra)["tag"] == [0]
        assert lettered.turns == records(raw)[1].turns
        assert opened.turns == records(raw, choices="open")[1].turns

    def test_the_seed_decides(self, raw: Path, records: Records) -> None:
        drawn = {records(raw, seed=seed)[5].turns for seed in range(6)}
        assert len(drawn) == 6

    @pytest.mark.parametrize("choices", ["lettered", "both"])
    def test_an_answer_outside_the_pool_stays_open_and_is_counted(
        self,
        tmp_path: Path,
        choices: str,
        annotations: Annotations,
        write_raw: WriteRaw,
        records: Records,
    ) -> None:
        content = annotations("f1")
        content["s1"]["key_frames"]["f1"]["QA"]["perception"][1]["A"] = "Parked."
        raw = write_raw(tmp_path, content)
        found = [each for each in records(raw, choices=choices) if each.notes]
        assert [(each.id, each.notes, each.turns[1].text) for each in found] == [
            ("drivelm/train/s1_f1_1", ("answer-outside-pool",), "Parked.")
        ]
        assert json.loads(found[0].extra)["tag"] == [0]


def without_answers(content: Json, answer: object) -> Json:
    for scene in content.values():
        for each in scene["key_frames"].values():
            del each["key_object_infos"]
            for items in each["QA"].values():
                for item in items:
                    if answer == "missing":
                        del item["A"]
                    else:
                        item["A"] = answer
    return content


class TestVal:
    @pytest.mark.parametrize("answer", ["", None, "missing", "  "])
    def test_questions_only(
        self,
        tmp_path: Path,
        answer: object,
        annotations: Annotations,
        write_raw: WriteRaw,
        records: Records,
    ) -> None:
        content = without_answers(annotations("f1"), answer)
        raw = write_raw(tmp_path, content, "v1_1_val_nus_q_only.json")
        found = records(raw, "val")
        assert [record.turns[1].text for record in found] == [""] * 6
        assert found[1].id == "drivelm/val/s1_f1_1"
        assert found[1].turns[0].text == human(
            "What is the moving status of object <c1,CAM_BACK,[560, 776]>?"
        )
        assert json.loads(found[1].extra)["answer"] == ""
        assert all("tag" not in json.loads(record.extra) for record in found)
        assert all(record.notes == () for record in found)

    def test_the_files_own_tags_are_taken(
        self, tmp_path: Path, annotations: Annotations, write_raw: WriteRaw, records: Records
    ) -> None:
        content = without_answers(annotations("f1"), "")
        content["s1"]["key_frames"]["f1"]["QA"]["planning"][0]["tag"] = [1]
        raw = write_raw(tmp_path, content, "v1_1_val_nus_q_only.json")
        tags = [json.loads(record.extra).get("tag") for record in records(raw, "val")]
        assert tags == [None, None, None, None, [1], None]

    def test_lettered_questions_stay_as_they_are(
        self, tmp_path: Path, annotations: Annotations, write_raw: WriteRaw, records: Records
    ) -> None:
        content = annotations("f1")
        item = content["s1"]["key_frames"]["f1"]["QA"]["behavior"][0]
        item |= {"Q": f"Predict. {OPTIONS_PHRASE} A. x B. y C. z D. w", "A": "C"}
        raw = write_raw(tmp_path, content)
        for choices in ("lettered", "open", "both"):
            record = records(raw, choices=choices)[-1]
            assert record.id == "drivelm/train/s1_f1_5"
            assert record.turns[0].text == human(item["Q"])
            assert (record.turns[1].text, record.notes) == ("C", ())


class TestOptions:
    def test_their_names_defaults_and_help(self) -> None:
        parameters = inspect.signature(drivelm.convert).parameters
        assert {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        } == {
            "annotations": None,
            "choices": "lettered",
            "boxes": True,
            "quality": 90,
            "seed": 42,
        }

    @pytest.mark.parametrize("quality", [0, 101, -1])
    def test_quality_out_of_range(self, raw: Path, quality: int) -> None:
        with pytest.raises(UsageError, match=r"--quality is .*, expected 1 to 100"):
            drivelm.parts(raw, "train", quality=quality)


def test_the_real_sample(shared: Path, records: Records) -> None:
    raw = shared / "data" / "drivelm_nuscenes"
    content = json.loads((raw / "v1_1_train_nus.sample.json").read_bytes())
    found = records(raw)
    expected = {
        f"{scene}_{token}_{number}": item
        for scene, value in content.items()
        for token, each in value["key_frames"].items()
        for number, item in enumerate(
            item
            for family in ("perception", "prediction", "planning", "behavior")
            for item in each["QA"][family]
        )
    }
    assert [record.source_row() for record in found] == list(expected)
    assert len(found) == 531
    for record in found:
        extra = json.loads(record.extra)
        item = expected[record.source_row()]
        assert extra["question"].split(f" {OPTIONS_PHRASE}")[0] == item["Q"]
        answer = extra["answer"]
        assert (extra["options"]["ABCD".index(answer)] if "options" in extra else answer) == (
            item["A"]
        )
        assert "CAM_BACK,1" not in record.turns[0].text + record.turns[1].text
    asked = [item["Q"] for item in expected.values()]
    assert sum("options" in json.loads(record.extra) for record in found) == (
        sum("moving status of object" in question for question in asked)
        + asked.count("Predict the behavior of the ego vehicle.")
    )
    assert [record.notes for record in found if record.notes] == []
    assert sum("tag" in json.loads(record.extra) for record in found) == 44
    assert sum("<box>" in record.turns[1].text for record in found) == 6
    assert [each.reason for record in found for each in record.dropped] == []


def test_the_challenges_files_are_read(shared: Path, records: Records) -> None:
    raw = shared / "data" / "drivelm_nuscenes"
    path = raw / "challenge" / "test_eval.json"
    found = records(raw, "val", annotations=path)
    assert len(found) == 44
    assert sum("no-object-infos" in record.notes for record in found) == 6
    assert [json.loads(record.extra)["tag"] for record in found[:4]] == [[2], [0], [3], [0]]
    assert found[1].turns[1].text == "D"


def test_a_limit_inside_a_lost_frame(raw: Path, tmp_path: Path) -> None:
    (raw / "nuscenes/samples/CAM_BACK/f2.jpg").unlink()
    out = tmp_path / "out"
    options = ("--limit", "8", "--max-skips", "2", "--workers", "1")
    assert run(["convert", "drivelm", str(raw), "--out", str(out), *options]) == 0
    ledger = json.loads((out / "dataset.json").read_text())["splits"]["train"]["ledger"]
    assert [ledger[key] for key in ("units_in", "used", "skipped", "records")] == [8, 6, 2, 6]
