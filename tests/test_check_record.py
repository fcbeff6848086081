"""What `adapt check` finds in one record: the schema's problems, and those it cannot say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from record_values import record, turns

from adapt.check_record import check_line
from adapt.problems import Problem

BOXES = "[[x1, y1, x2, y2], ...] of whole numbers 0 to 1000, x1 <= x2, y1 <= y2"
POINT = "<c1,CAMERA,[x, y]> with whole numbers 0 to 1000"


def problems_of(value: object) -> list[Problem]:
    return check_line(msgspec.json.encode(value)).problems


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": [], "width_list": [], "height_list": [], "conversations": turns("Hi", "Ho")},
        {"conversations": turns("<image>\nHow many?", "")},
        {"conversations": turns("<image>\nA?", "a", "B?", "b < c and d > e")},
        {"conversations": turns("<image>", "<ref>a</ref><box>[[0, 0, 1000, 1000]]</box>")},
        {"conversations": turns("<image> in <box>[[1,2,3,4]]</box>", "<box>[[5, 5, 5, 5]]</box>")},
        {"conversations": turns("<image>", "<box>[[ 1 , 2,3, 4 ],[007, 8, 9, 10]]</box>")},
        {"conversations": turns("<image> <c1,CAM_BACK,[1000, 0]>?", "<c2,CAM_FRONT,[0,1]>.")},
        {"conversations": turns("<image> <c, CAM, [cx,cy]>", "<html><c1> <d1,a,b>")},
        {"extra": '{"tag": [1, 2]}'},
        {"extra": "3"},
    ],
)
def test_good_records(changes: dict[str, Any]) -> None:
    assert problems_of(record(**changes)) == []


def place(turn: int) -> str:
    return f"$.conversations[{turn}].value"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"image": ["../a.png"]},
            Problem("$.image[0]", '"../a.png"', "a path that stays below the dataset's root"),
        ),
        (
            {"width_list": []},
            Problem("$.width_list", "0 entries", "1, one for each of $.image"),
        ),
        (
            {"height_list": [1, 2]},
            Problem("$.height_list", "2 entries", "1, one for each of $.image"),
        ),
        (
            {"conversations": turns("How many?", "4")},
            Problem("$.conversations", "0 <image>", "1, one for each of $.image"),
        ),
        (
            {"conversations": turns("<image><image>", "4")},
            Problem("$.conversations", "2 <image>", "1, one for each of $.image"),
        ),
        (
            {"conversations": turns("What?", "This: <image>")},
            Problem(place(1), "1 <image> in an answer", "pictures in human turns only"),
        ),
        (
            {"conversations": turns("<image>", "4", "And now?")},
            Problem("$.conversations", "3 turns", "an even number: an answer to each human turn"),
        ),
        (
            {"conversations": turns("<image>", "", "And now?", "5")},
            Problem(
                place(1),
                '""',
                "text (only the last answer may be empty, and then without blanks)",
            ),
        ),
        (
            {"conversations": turns("<image>", " \n")},
            Problem(
                place(1),
                '" \\n"',
                "text (only the last answer may be empty, and then without blanks)",
            ),
        ),
        (
            {"conversations": turns("<image> <IMG_CONTEXT>", "4")},
            Problem(place(0), "<IMG_CONTEXT>", "<image> for a picture"),
        ),
        (
            {"conversations": turns("<image>", "<box>[[1, 2, 3]]</box>")},
            Problem(place(1), "<box>[[1, 2, 3]]</box>", BOXES),
        ),
        (
            {"conversations": turns("<image>", "<box>[]</box>")},
            Problem(place(1), "<box>[]</box>", BOXES),
        ),
        (
            {"conversations": turns("<image>", "<box>[[0.1, 0.2, 0.3, 0.4]]</box>")},
            Problem(place(1), "<box>[[0.1, 0.2, 0.3, 0.4]]</box>", BOXES),
        ),
        (
            {"conversations": turns("<image> <box>[[1, 2, 3, 1001]]</box>", "4")},
            Problem(place(0), "box [1, 2, 3, 1001]", BOXES),
        ),
        (
            {"conversations": turns("<image>", "<box>[[1, 2, 3, 4], [9, 2, 3, 4]]</box>")},
            Problem(place(1), "box [9, 2, 3, 4]", BOXES),
        ),
        (
            {"conversations": turns("<image>", "<box>[[-1, 2, 3, 4]]</box>")},
            Problem(place(1), "box [-1, 2, 3, 4]", BOXES),
        ),
        (
            {"conversations": turns("<image>", "a <box>[[1, 2, 3, 4]]")},
            Problem(place(1), "<box> at 2", "</box> after it"),
        ),
        (
            {"conversations": turns("<image>", "car</ref>")},
            Problem(place(1), "</ref> at 3", "<ref> before it"),
        ),
        (
            {"conversations": turns("<image>", "<ref>a<ref>b</ref>")},
            Problem(place(1), "<ref> at 0", "</ref> after it"),
        ),
        (
            {"conversations": turns("<image> <c1,CAM_BACK,1088.3,497.5>", "4")},
            Problem(place(0), "<c1,CAM_BACK,1088.3,497.5>", POINT),
        ),
        (
            {"conversations": turns("<image>", "<c1,CAM_BACK,[1001, 4]>")},
            Problem(place(1), "<c1,CAM_BACK,[1001, 4]>", POINT),
        ),
        (
            {"conversations": turns("<image>", f"<c1,CAM_BACK,[{'1' * 5000}, 4]>")},
            Problem(place(1), f"<c1,CAM_BACK,[{'1' * 44}...", POINT),
        ),
        (
            {"conversations": turns("<image>", "<c1,CAM_BACK,[\u0661, 4]>")},
            Problem(place(1), "<c1,CAM_BACK,[\u0661, 4]>", POINT),
        ),
        (
            {"conversations": turns("<image>", "<box>[[\u0661, 2, 3, 4]]</box>")},
            Problem(place(1), "<box>[[\u0661, 2, 3, 4]]</box>", BOXES),
        ),
    ],
)
def test_what_the_schema_cannot_say(changes: dict[str, Any], expected: Problem) -> None:
    assert problems_of(record(**changes)) == [expected]


@pytest.mark.parametrize("extra", ["{'tag': 1}", "tag", "{", '{"a": 1} 2', "NaN"])
def test_extra_that_is_no_json(extra: str) -> None:
    (problem,) = problems_of(record(extra=extra))
    assert problem.place == "$.extra"
    assert problem.found.startswith(json.dumps(extra))
    assert problem.expected == "one string of JSON, or an empty one"


def test_turns_that_do_not_alternate() -> None:
    swapped = [{"from": "gpt", "value": "<image>"}, {"from": "human", "value": "4"}]
    assert [str(problem) for problem in problems_of(record(conversations=swapped))] == [
        '$.conversations[0].from found "gpt", expected "human": turns alternate, human first',
        '$.conversations[1].from found "human", expected "gpt": turns alternate, human first',
        f"{place(0)} found 1 <image> in an answer, expected pictures in human turns only",
    ]


def test_every_problem_of_a_damaged_record_is_told() -> None:
    value = record(
        id=5,
        image=["../x", ""],
        width_list=[0, 3.5],
        conversations=[{"from": "user", "value": "<box>"}, {"from": "gpt"}],
        colour="red",
        source={"dataset": "", "split": "train", "rows": "1"},
        extra="{",
    )
    del value["task"]
    assert [str(problem) for problem in problems_of(value)] == [
        "$.colour found an unknown key (known: conversations, extra, height_list, id, image, "
        "source, task, width_list), expected no such key",
        "$.task found nothing, expected this key",
        '$.conversations[0].from found "user", expected "human" or "gpt"',
        "$.conversations[1].value found nothing, expected this key",
        "$.id found 5, expected a string",
        "$.image[1] found an empty string, expected at least 1 character",
        "$.source.rows found an unknown key (did you mean row?), expected no such key",
        "$.source.row found nothing, expected this key",
        "$.source.dataset found an empty string, expected at least 1 character",
        "$.width_list[0] found 0, expected at least 1",
        "$.width_list[1] found 3.5, expected a whole number",
        '$.image[0] found "../x", expected a path that stays below the dataset\'s root',
        f"{place(0)} found <box> at 0, expected </box> after it",
        '$.extra found "{" (unexpected end of data at 1), expected one string of JSON, '
        "or an empty one",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id": "a"', "$ found JSON that breaks at column 11 (unexpected end of data)"),
        (b"\xff", "$ found bytes that are no UTF-8 at column 1"),
        (b"3", "$ found 3"),
        (b"{'a': 1}", "$ found JSON that breaks at column 2 "),
        (b'{"a": ' + b"[" * 990 + b"]" * 990 + b"}", "$"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "$ found JSON"),
    ],
)
def test_lines_that_hold_no_object(line: bytes, expected: str) -> None:
    checked = check_line(line)
    assert checked.record is None
    assert str(checked.problems[0]).startswith(expected)
