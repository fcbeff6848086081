"""The truth: the challenge's file and our records."""

import json

import pytest

from adapt.errors import RecordError, SourceError
from adapt.eval.drivelm_truth import Question, Truth, read_truth

OPTIONS = "Please select the correct answer from the following options: A. Stopped. B. Turn left."
STATUS = "What is the moving status of object <c1,CAM_BACK,100.0,200.0>?"


def entry(question, answer, *tags):
    return {"Q": question, "A": answer, "C": None, "tag": list(tags)}


def official(path, **lists):
    names = ("perception", "prediction", "planning", "behavior")
    frame = {"QA": {name: lists.get(name, []) for name in names}, "image_paths": {}}
    path.write_text(json.dumps({"s": {"scene_description": "", "key_frames": {"f": frame}}}))
    return path


def record(row, human, answer, extra=""):
    return {
        "id": f"drivelm/val/{row}",
        "image": ["images/s_f.jpg"],
        "width_list": [2688],
        "height_list": [896],
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": answer}],
        "task": "multiview",
        "source": {"dataset": "drivelm", "split": "val", "row": row},
        "extra": json.dumps(extra) if extra else "",
    }


def records(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def extra(question, answer, *tags):
    return {"tag": list(tags), "question": question, "answer": answer, "category": "perception"}


# The challenge's layout


def test_official_questions_are_numbered_over_the_four_lists(tmp_path):
    path = official(
        tmp_path / "truth.json",
        perception=[entry("P0", "a", 2), entry("P1", "b", 0)],
        prediction=[entry("<image>\nQ2", "c", 3, 0)],
        behavior=[entry("B3", "d", 0)],
    )
    assert read_truth(path) == Truth(
        [
            Question("s_f_0", "s_f", "P0", "a", frozenset([2]), ("P0",)),
            Question("s_f_1", "s_f", "P1", "b", frozenset([0]), ("P1",)),
            Question("s_f_2", "s_f", "<image>\nQ2", "c", frozenset([0, 3]), ("Q2",)),
            Question("s_f_3", "s_f", "B3", "d", frozenset([0]), ("B3",)),
        ],
        frozenset(),
        is_official=True,
    )


def test_official_questions_without_a_tag_key_are_not_scored(tmp_path):
    path = official(tmp_path / "t.json", perception=[{"Q": "P", "A": ""}, entry("P1", "b", 0)])
    truth = read_truth(path)
    assert [question.id for question in truth.questions] == ["s_f_1"]
    assert truth.unscored == {"s_f_0"}


def test_an_empty_tag_list_still_takes_its_place(tmp_path):
    path = official(tmp_path / "t.json", perception=[entry("P", ""), entry("P1", "b", 0)])
    assert [question.tags for question in read_truth(path).questions] == [set(), {0}]


def test_the_real_files(shared):
    folder = shared / "data" / "drivelm_nuscenes"
    truth = read_truth(folder / "challenge" / "test_eval.json")
    raw = json.loads((folder / "challenge" / "test_eval.json").read_text())
    frames = [frame["QA"] for scene in raw.values() for frame in scene["key_frames"].values()]
    assert len(truth.questions) == sum(len(entries) for qa in frames for entries in qa.values())
    with pytest.raises(RecordError, match="has a tag, which says how it is scored"):
        read_truth(folder / "v1_1_train_nus.sample.json")


# Our records


def test_only_records_with_a_tag_are_scored_against_the_raw_texts(tmp_path):
    path = records(
        tmp_path / "val.jsonl",
        record("s_f_0", "<image>\nWhat is near?", "A car."),
        record(
            "s_f_1",
            "<image>\nIs <c1,CAM_BACK,[354, 611]> red?",
            "<c1,CAM_BACK,[354, 611]>",
            extra("Is <c1,CAM_BACK,100.0,200.0> red?", "<c1,CAM_BACK,100.0,200.0>", 0),
        ),
        record("s_f_2", "<image>\nIs it?", "No.", {"category": "perception"}),
    )
    asked = ("Is <c1,CAM_BACK,[354, 611]> red?", "Is <c1,CAM_BACK,100.0,200.0> red?")
    question = Question("s_f_1", "s_f", asked[1], "<c1,CAM_BACK,100.0,200.0>", {0}, asked)
    assert read_truth(path) == Truth([question], {"s_f_0", "s_f_2"}, is_official=False)


def test_a_lettered_record_is_scored_against_its_letter(tmp_path):
    human = f"<image>\nWhat is the moving status of object <c1,CAM_BACK,[354, 611]>? {OPTIONS}"
    line = record("s_f_0", human, "B", extra(STATUS, "Turn left.", 0))
    [question] = read_truth(records(tmp_path / "val.jsonl", line)).questions
    assert question.truth == "B"
    assert question.text == f"{STATUS} {OPTIONS}"
    assert question.asked == (human.removeprefix("<image>\n"), f"{STATUS} {OPTIONS}")


def test_a_question_that_was_lettered_before_keeps_its_letter(tmp_path):
    raw = f"{STATUS} {OPTIONS}"
    line = record("s_f_0", f"<image>\n{raw}", "B", extra(raw, "B", 0))
    [question] = read_truth(records(tmp_path / "val.jsonl", line)).questions
    assert (question.text, question.truth) == (raw, "B")


def test_of_twins_the_lettered_one_is_scored(tmp_path):
    path = records(
        tmp_path / "val.jsonl",
        record("s_f_0", f"<image>\n{STATUS}", "Turn left.", extra(STATUS, "Turn left.", 0)),
        record("s_f_0#mc", f"<image>\n{STATUS} {OPTIONS}", "B", extra(STATUS, "Turn left.", 0)),
        record("s_f_1", "<image>\nIs it?", "No.", extra("Is it?", "No.", 0)),
    )
    truth = read_truth(path)
    assert [(question.id, question.frame) for question in truth.questions] == [
        ("s_f_0#mc", "s_f"),
        ("s_f_1", "s_f"),
    ]
    assert truth.unscored == {"s_f_0"}


def line(row, question, *tags):
    return record(row, question, "Yes.", extra(question, "Yes.", *tags) if tags else "")


def test_questions_picked_out_of_a_whole_annotation_get_the_challenges_order(tmp_path):
    path = records(
        tmp_path / "val.jsonl",
        line("s_f_0", "Would it stop?", 0),
        line("s_g_0", "What first?", 3),
        line("s_f_1", "What first?", 3),
        line("s_f_2", STATUS, 0),
        line("s_f_3", "What are the important objects?", 2),
        line("s_g_1", "What is safe?", 1),
        line("s_f_4", "What is safe?", 1),
        line("s_f_5", "What is near?"),
    )
    assert [question.id for question in read_truth(path).questions] == [
        *["s_f_3", "s_f_2", "s_f_1", "s_f_0", "s_f_4"],
        *["s_g_0", "s_g_1"],
    ]


def test_a_frame_with_tags_throughout_keeps_its_order(tmp_path):
    path = records(
        tmp_path / "val.jsonl",
        line("s_f_0", STATUS, 0),
        line("s_f_1", "What are the important objects?", 2),
        line("s_g_0", "What is near?"),
    )
    assert [question.id for question in read_truth(path).questions] == ["s_f_0", "s_f_1"]


# Refusals


def test_neither_layout(tmp_path):
    for text in ('{"a": 1}', "[]", "hello"):
        (tmp_path / "truth.json").write_text(text)
        with pytest.raises(SourceError, match="neither"):
            read_truth(tmp_path / "truth.json")


def test_missing_empty_folder_and_cut_off(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_truth(tmp_path / "none.json")
    with pytest.raises(SourceError, match="is a folder"):
        read_truth(tmp_path)
    (tmp_path / "empty.json").touch()
    with pytest.raises(SourceError, match="empty"):
        read_truth(tmp_path / "empty.json")
    (tmp_path / "cut.json").write_text('{"s": {"key_frames": {"f": {"QA"')
    with pytest.raises(SourceError, match="cut off"):
        read_truth(tmp_path / "cut.json")


def test_a_missing_list_is_named(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"s": {"key_frames": {"f": {"QA": {"perception": []}}}}}))
    with pytest.raises(RecordError, match="`prediction`"):
        read_truth(path)


def test_questions_only(tmp_path):
    path = official(tmp_path / "t.json", perception=[entry("P", "", 0)])
    with pytest.raises(RecordError, match=r"s_f_0: has a tag but no true answer"):
        read_truth(path)
    line = record("s_f_0", "<image>\nP", "", extra("P", "", 0))
    with pytest.raises(RecordError, match=r"val\.jsonl:1: drivelm/val/s_f_0: has a tag but no"):
        read_truth(records(tmp_path / "val.jsonl", line))


def test_records_without_any_tag(tmp_path):
    with pytest.raises(RecordError, match="none of 1 questions has a tag"):
        read_truth(records(tmp_path / "val.jsonl", record("s_f_0", "<image>\nP", "")))


def test_an_unknown_tag(tmp_path):
    path = official(tmp_path / "t.json", perception=[entry("P", "a", 0, 4)])
    with pytest.raises(RecordError, match=r"s_f_0: tag 4 is unknown \(known: 0 accuracy, 1 judge"):
        read_truth(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tag": [0]}, 'not "question" and "answer"'),
        ({"tag": 0, "question": "P", "answer": "a"}, "extra is not what"),
        ("text", "extra is not what"),
    ],
)
def test_an_extra_of_another_shape(tmp_path, value, message):
    path = records(tmp_path / "val.jsonl", record("s_f_0", "<image>\nP", "a", value))
    with pytest.raises(RecordError, match=rf"val\.jsonl:1: drivelm/val/s_f_0: .*{message}"):
        read_truth(path)


def test_a_record_twice(tmp_path):
    line = record("s_f_0", "<image>\nP", "a", extra("P", "a", 0))
    with pytest.raises(RecordError, match=r"val\.jsonl:2: drivelm/val/s_f_0: .*once"):
        read_truth(records(tmp_path / "val.jsonl", line, line))


def test_a_line_that_is_no_record(tmp_path):
    line = record("s_f_0", "<image>\nP", "a", extra("P", "a", 0))
    with pytest.raises(RecordError, match=r"val\.jsonl:2: not a record"):
        read_truth(records(tmp_path / "val.jsonl", line, {"id": "x"}))
