"""Predictions: both layouts, and what does not belong to the truth."""

import json

import pytest

from adapt.converters.drivelm import PROMPT
from adapt.coords import NUSCENES
from adapt.errors import RecordError, SourceError
from adapt.eval.drivelm_predictions import Prediction, pair_up, read_predictions
from adapt.eval.drivelm_score import Question
from adapt.eval.drivelm_truth import Truth
from adapt.problems import schema_problems

LINE = {
    "id": "drivelm/val/s_f_0",
    "question": "<image>\nWhere?",
    "answer": "There.",
    "gt_answer": "Here.",
    "source": {"dataset": "drivelm", "split": "val", "row": "s_f_0"},
    "model": "tiny",
    "prompt_tokens": 300,
    "answer_tokens": 2,
    "finish": "stop",
}


def question(name, *asked, text=None):
    return Question(name, name.rsplit("_", 1)[0], text or asked[0], "There.", frozenset([0]), asked)


def truth_of(*questions, unscored=(), is_official=True):
    return Truth(list(questions), frozenset(unscored), is_official)


def predictions_of(*rows):
    return {row.id.split("/")[-1]: row for row in rows}


def mosaic_tag(name, camera, x, y):
    return f"<{name},{camera},[{', '.join(map(str, NUSCENES.point_to_1000(camera, x, y)))}]>"


# Reading


def test_the_schema_takes_a_line_and_refuses_others():
    assert schema_problems(LINE, "prediction") == []
    for change in ({"finish": "eos"}, {"answer": None}, {"prompt_tokens": 1.0}, {"more": 1}):
        assert len(schema_problems({**LINE, **change}, "prediction")) == 1
    assert len(schema_problems({}, "prediction")) == len(LINE)


def test_every_layout_is_read(tmp_path):
    rows = [{"id": "s_f_0", "question": "Where?", "gt_answer": "x", "answer": "There."}]
    rows.append({"id": "s_f_1", "answer": ""})
    expected = {
        "s_f_0": Prediction("s_f_0", "Where?", "There."),
        "s_f_1": Prediction("s_f_1", None, ""),
    }
    path = tmp_path / "predictions.json"
    for text in (
        json.dumps(rows),
        json.dumps(rows, indent=4),
        json.dumps({"method": "ours", "results": rows}, indent=4),
        "".join(json.dumps(row) + "\n\n" for row in rows),
    ):
        path.write_text(text)
        assert read_predictions(path) == expected


def test_our_lines_are_keyed_without_dataset_and_split(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(LINE) + "\n")
    [(key, prediction)] = read_predictions(tmp_path / "p.jsonl").items()
    assert key == "s_f_0"
    assert prediction == Prediction("drivelm/val/s_f_0", "<image>\nWhere?", "There.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": "a", "answer": 5}]', r"\$\[0\]\.answer"),
        ('[{"id": "a", "answer": null}]', r"\$\[0\]\.answer"),
        ('[{"answer": "a"}]', r"`id`"),
        ('{"id": "a"}', r"p\.json:1: not a prediction: .*`answer`"),
        ('{"id": "a", "answer": "b"}\n{"id"', r"p\.json:2: not a prediction"),
        ('{"results": 5}', "not a submission"),
        ("hello", r"p\.json:1: not a prediction"),
    ],
)
def test_malformed_predictions_are_refused_with_their_place(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        read_predictions(tmp_path / "p.json")


def test_a_cut_off_list(tmp_path):
    (tmp_path / "p.json").write_text('[{"id": "a", "answer": "b"}')
    with pytest.raises(SourceError, match="cut off"):
        read_predictions(tmp_path / "p.json")


@pytest.mark.parametrize("second", ["s_f_0", "drivelm/val/s_f_0", "drivelm/train/s_f_0"])
def test_an_id_twice_is_refused(tmp_path, second):
    rows = [{"id": "s_f_0", "answer": "a"}, {"id": second, "answer": "a"}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(RecordError, match=rf"\$\[1\]: id '{second}' stands in the file before"):
        read_predictions(tmp_path / "p.json")


# Pairing


def test_answers_are_paired_and_the_rest_counted(tmp_path):
    truth = truth_of(question("s_f_0", "Where?"), question("s_f_1", "Why?"), unscored=["s_f_2"])
    predictions = predictions_of(
        Prediction("s_f_2", "Who?", "x"),
        Prediction("s_f_1", None, "b"),
        Prediction("s_f_0", "<image>\nWhere? ", "a"),
        Prediction("s_f_9", "Who?", "x"),
        Prediction("t_f_9", "Who?", "x"),
    )
    paired = pair_up(truth, predictions, tmp_path)
    assert paired.answers == {"s_f_0": "a", "s_f_1": "b"}
    assert (paired.unscored, paired.unknown, paired.without_question) == (1, 2, 1)


def test_missing_predictions_are_counted_and_named(tmp_path):
    truth = truth_of(*(question(f"s_f_{n}", "Where?") for n in range(5)))
    with pytest.raises(
        RecordError, match=r"4 of 5 .* first s_f_1, s_f_2, s_f_3; the file's first id is s_f_0"
    ):
        pair_up(truth, predictions_of(Prediction("s_f_0", None, "")), tmp_path)
    with pytest.raises(RecordError, match=r"5 of 5 .* first id is none"):
        pair_up(truth, {}, tmp_path)


@pytest.mark.parametrize("found", ["", "Where", "where?", "Why?", "Where? Where?", "Where?\nNow."])
@pytest.mark.parametrize("prefix", ["", "drivelm/val/"])
@pytest.mark.parametrize("is_official", [True, False])
def test_another_question_is_refused_by_id(tmp_path, found, prefix, is_official):
    truth = truth_of(question("s_f_0", "Where?"), is_official=is_official)
    predictions = predictions_of(Prediction(f"{prefix}s_f_0", found, "a"))
    with pytest.raises(RecordError, match=rf"{prefix}s_f_0: answers another question") as caught:
        pair_up(truth, predictions, tmp_path)
    assert "expected 'Where?'" in str(caught.value)


# Mosaic coordinates


def test_our_answers_are_turned_back_into_camera_pixels(tmp_path):
    truth = truth_of(question("s_f_0", "Where?"), is_official=False)
    answer = f"The ID is {mosaic_tag('c1', 'CAM_BACK', 1088.3, 497.5)}."
    ours = predictions_of(Prediction("drivelm/val/s_f_0", "Where?", answer))
    found = pair_up(truth, ours, tmp_path).answers["s_f_0"]
    assert found.startswith("The ID is <c1,CAM_BACK,")
    x, y = map(float, found.removesuffix(">.").split(",")[2:])
    assert abs(x - 1088.3) < 2.5
    assert abs(y - 497.5) < 1.0
    theirs = predictions_of(Prediction("s_f_0", "Where?", answer))
    assert pair_up(truth, theirs, tmp_path).answers["s_f_0"] == answer


def test_our_question_is_recognised_in_the_official_truth(tmp_path):
    text = "Is <c1,CAM_BACK,1088.3,497.5> near <c2,CAM_FRONT_LEFT,3.2,899.9>?"
    truth = truth_of(question("s_f_0", text))
    near = mosaic_tag("c2", "CAM_FRONT_LEFT", 3.2, 899.9)

    def pair(asked):
        predictions = predictions_of(Prediction("drivelm/val/s_f_0", asked, "a"))
        return pair_up(truth, predictions, tmp_path).answers

    same = f"Is {mosaic_tag('c1', 'CAM_BACK', 1088.3, 497.5)} near {near}?"
    assert pair(f"<image>\n{same}") == {"s_f_0": "a"}
    assert pair(f"<image>\n{PROMPT}\n{same}") == {"s_f_0": "a"}
    for other in (
        f"<image>\nIs {mosaic_tag('c1', 'CAM_BACK', 1098.3, 497.5)} near {near}?",
        f"<image>\nIs {mosaic_tag('c1', 'CAM_FRONT', 1088.3, 497.5)} near {near}?",
        f"<image>\nIs {mosaic_tag('c3', 'CAM_BACK', 1088.3, 497.5)} near {near}?",
        f"<image>\nIs {near} near?",
        f"<image>\nAnswer at once.\n{same}",
    ):
        with pytest.raises(RecordError, match="another question"):
            pair(other)


def test_our_question_against_records_must_be_equal_to_the_letter(tmp_path):
    raw = "Is <c1,CAM_BACK,1088.3,497.5> red?"
    asked = f"Is {mosaic_tag('c1', 'CAM_BACK', 1088.3, 497.5)} red?"
    truth = truth_of(question("s_f_0", asked, raw, text=raw), is_official=False)
    for found in (f"<image>\n{asked}", raw):
        predictions = predictions_of(Prediction("drivelm/val/s_f_0", found, "a"))
        assert pair_up(truth, predictions, tmp_path).answers == {"s_f_0": "a"}
    other = predictions_of(Prediction("drivelm/val/s_f_0", asked.replace(", ", ","), "a"))
    with pytest.raises(RecordError, match="another question"):
        pair_up(truth, other, tmp_path)
