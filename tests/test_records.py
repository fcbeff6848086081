"""The stored record: its Arrow schema, and the schema file against the typed decoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.json
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from adapt.check_record import check_line, decode_record
from adapt.jsonl import read_records, write_lines
from adapt.problems import schema_problems
from adapt.records import (
    Message,
    Record,
    RecordLine,
    Source,
    Turn,
    arrow_schema,
    complete,
    inside,
    is_safe_path,
)
from adapt.resources import schema_path

SCHEMA: dict[str, Any] = json.loads(schema_path("record").read_text())


def line_of(number: int, images: list[str], answer: str = "4") -> RecordLine:
    placeholders = "<image>\n" * len(images)
    return RecordLine(
        id=f"set/train/{number}",
        image=images,
        width_list=[640] * len(images),
        height_list=[480] * len(images),
        conversations=[Message("human", f"{placeholders}How many?"), Message("gpt", answer)],
        task="vqa",
        source=Source("set", "train", str(number)),
        extra="",
    )


def test_complete_gives_the_stored_line() -> None:
    record = Record(
        id="set/train/a/7",
        image=("images/1.jpg",),
        turns=(Turn("human", "<image>\nHow many?"), Turn("gpt", "4")),
    )
    line = complete(record, [(640, 480)], dataset="set", split="train")
    assert msgspec.json.encode(line) == (
        b'{"id":"set/train/a/7","image":["images/1.jpg"],"width_list":[640],"height_list":[480],'
        b'"conversations":[{"from":"human","value":"<image>\\nHow many?"},'
        b'{"from":"gpt","value":"4"}],"task":"vqa",'
        b'"source":{"dataset":"set","split":"train","row":"a/7"},"extra":""}'
    )


def test_arrow_schema_has_the_keys_of_the_schema_in_order() -> None:
    assert arrow_schema().names == SCHEMA["required"] == list(SCHEMA["properties"])
    assert arrow_schema().names == list(RecordLine.__struct_fields__)
    source = arrow_schema().field("source").type
    assert [source.field(index).name for index in range(3)] == ["dataset", "split", "row"]


@pytest.mark.parametrize("text_first", [3, 3000])
def test_round_trip_through_arrow_and_datasets_with_text_only_rows_first(
    tmp_path: Path, text_first: int
) -> None:
    """A reader that guesses types from the first rows takes an empty image list for nulls."""
    import datasets

    lines = [line_of(number, []) for number in range(text_first)]
    lines += [line_of(text_first, ["a/1.jpg", "a/2.jpg"]), line_of(text_first + 1, ["b.png"], "")]
    path = tmp_path / "train.jsonl"
    write_lines(path, lines)
    rows = [msgspec.to_builtins(line) for line in lines]

    table = pa.json.read_json(path, parse_options=pa.json.ParseOptions(arrow_schema()))
    assert table.schema == arrow_schema()
    assert table.to_pylist() == rows

    features = datasets.Features.from_arrow_schema(arrow_schema())
    loaded = datasets.load_dataset(
        "json",
        data_files=str(path),
        features=features,
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.data.schema.remove_metadata() == arrow_schema()
    assert loaded.to_list() == rows

    parquet = tmp_path / "train.parquet"
    loaded.to_parquet(parquet)
    assert pa.parquet.read_table(parquet).to_pylist() == rows


def test_read_records_gives_back_what_was_written(tmp_path: Path) -> None:
    lines = [line_of(0, []), line_of(1, ["x.jpg"])]
    path = tmp_path / "train.jsonl"
    write_lines(path, lines)
    assert list(read_records(path)) == [(1, lines[0]), (2, lines[1])]


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("images/a.jpg", True),
        ("a..b/c...jpg", True),
        ("n015+0800__CAM_FRONT__1.jpg", True),
        ("", False),
        ("/etc/passwd", False),
        ("a/../../b", False),
        ("..", False),
        ("~/a", False),
        ("C:/a", False),
        ("a\\..\\b", False),
        ("a\0b", False),
    ],
)
def test_is_safe_path(path: str, safe: bool) -> None:
    assert is_safe_path(path) is safe


def test_inside_follows_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "in").symlink_to(root / "real")
    (root / "out").symlink_to(tmp_path)
    assert inside(root, root / "in" / "a.jpg")
    assert not inside(root, root / "out" / "a.jpg")


# --- The schema and the typed decoder agree -----------------------------------------------------

TEXT = st.text(max_size=12)
NAME = st.text(min_size=1, max_size=12)
SIZE = st.integers(min_value=1, max_value=2**31 - 1)
RECORDS = st.fixed_dictionaries(
    {
        "id": NAME,
        "image": st.lists(NAME, max_size=3),
        "width_list": st.lists(SIZE, max_size=3),
        "height_list": st.lists(SIZE, max_size=3),
        "conversations": st.lists(
            st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXT}),
            min_size=2,
            max_size=4,
        ),
        "task": NAME,
        "source": st.fixed_dictionaries({"dataset": NAME, "split": NAME, "row": NAME}),
        "extra": TEXT,
    }
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, 10**30, -0.0, 1.0, 3.5, 1e300]),
    st.sampled_from(["", "human", "gpt", "user", "1", "\ud800", "\x00"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 2) | TEXT, max_size=2),
)
WRITERS = (
    lambda value: json.dumps(value).encode(),
    lambda value: json.dumps(value, indent=1).replace("\n", " ").encode(),
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    ),
    lambda value: json.dumps(value, sort_keys=True, ensure_ascii=False).encode(
        errors="surrogatepass"
    ),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) inside a JSON value."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    below = [place for key in keys for place in places(value[key])]
    return [(value, key) for key in keys] + below


@st.composite
def mutated_records(draw: st.DrawFn) -> bytes:
    """Return a line: a good record after up to three changes, written in some way."""
    value = copy.deepcopy(draw(RECORDS))
    for _ in range(draw(st.integers(0, 3))):
        found = places(value)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        change = draw(st.sampled_from(["replace", "replace", "delete", "add", "repeat"]))
        if change == "replace":
            container[key] = draw(ODD)
        elif change == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(draw(ODD) if change == "add" else copy.deepcopy(container[key]))
        else:
            container[draw(st.sampled_from(["foo", "from", "id", "row", ""]))] = draw(ODD)
    line: bytes = draw(st.sampled_from(WRITERS))(value)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(line)))
        piece = draw(st.sampled_from([b"", b" ", b'"', b"\\", b",", b"\t", b"\xff", b"}", b"0"]))
        line = line[:at] + piece + line[at + draw(st.integers(0, 1)) :]
    return line


class NotRecordError(ValueError):
    """The slow reader refuses a line."""


def slow_verdict(line: bytes) -> bool:
    """Say whether a line is a record with nothing but Python's json and the schema."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise NotRecordError("a key twice")
        return dict(items)

    def constant(name: str) -> None:
        raise NotRecordError(name)

    try:
        value = json.loads(
            line.decode(),
            object_pairs_hook=pairs,
            parse_constant=constant,
            # 3.0 is no whole number here: typed readers refuse it.
            parse_float=lambda text: float(text) + 0.5 if float(text).is_integer() else float(text),
        )
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return Draft202012Validator(SCHEMA).is_valid(value)


def fast_verdict(line: bytes) -> bool:
    repeated = any("more than once" in problem.found for problem in check_line(line).problems)
    return decode_record(line) is not None and not repeated


@given(value=RECORDS, writer=st.sampled_from(WRITERS))
def test_good_records_pass_both(value: dict[str, Any], writer: Any) -> None:
    line = writer(value)
    assert slow_verdict(line)
    assert fast_verdict(line)
    assert schema_problems(value, "record") == []
    assert msgspec.to_builtins(decode_record(line)) == value


@settings(max_examples=1000)
@given(line=mutated_records())
def test_schema_and_decoder_agree_on_mutated_records(line: bytes) -> None:
    assert fast_verdict(line) == slow_verdict(line)
    if not slow_verdict(line):
        assert check_line(line).problems, "refused without a reason"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("640", "640.0"),
        ("640", "true"),
        ("640", "0"),
        ("640", "-1"),
        ("640", "2147483648"),
        ("640", "1e3"),
        ("640", "6" * 5000),
        ('"vqa"', '""'),
        ('"vqa"', "null"),
        ('"vqa"', '"vqa","task":"x"'),
        ('"vqa"', '"vqa","tas\\u006b":"x"'),
        ('"vqa"', '"\\ud800"'),
        ('"gpt"', '"assistant"'),
        ('"x.jpg"', '""'),
        ('"x.jpg"', "1"),
        (',"extra":""', ""),
        ('"extra":""', '"extra":"","more":1'),
        ('"row":"1"', '"row":"1","line":2'),
        ('"row":"1"', '"row":""'),
        ('"dataset":"set"', '"dataset":""'),
        ('"split":"train"', '"split":""'),
        ('"id":"set/train/1"', '"id":""'),
    ],
)
def test_both_refuse(old: str, new: str) -> None:
    good = msgspec.json.encode(line_of(1, ["x.jpg"])).decode()
    bad = good.replace(old, new, 1).encode()
    assert fast_verdict(good.encode())
    assert slow_verdict(good.encode())
    assert not fast_verdict(bad)
    assert not slow_verdict(bad)


@pytest.mark.parametrize("value", ["a\\", 'say "a"', '\\"', "\\\\", "\\n", "tab\there", "\x7f"])
def test_backslashes_and_quotes_are_no_repeated_keys(value: str) -> None:
    line = msgspec.json.encode(line_of(1, [], value))
    assert check_line(line).problems == []


def test_a_repeated_key_is_found_behind_backslashes() -> None:
    line = msgspec.json.encode(line_of(1, [], "a\\" * 4)).replace(b'"extra"', b'"task":"v","extra"')
    assert [problem.found for problem in check_line(line).problems] == ['key "task" more than once']
