"""Reading and writing JSON and JSONL: places in errors, files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from adapt.errors import EnvironmentFault, RecordError, SourceError
from adapt.jsonl import (
    atomic_file,
    disk_fault,
    read_json,
    read_lines,
    read_records,
    sha256_file,
    sha256_listing,
    write_bytes,
    write_json,
    write_lines,
)
from adapt.records import Message, RecordLine, Source

LINE = RecordLine(
    id="set/train/1",
    image=["a.jpg"],
    width_list=[640],
    height_list=[480],
    conversations=[Message("human", "<image>\nWas ist das? ä"), Message("gpt", "日本 🚗")],
    task="vqa",
    source=Source("set", "train", "1"),
    extra="",
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_lines_keeps_the_order_of_keys_and_letters_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "new" / "train.jsonl"
    write_lines(path, [LINE, LINE])
    line = (
        '{"id":"set/train/1","image":["a.jpg"],"width_list":[640],"height_list":[480],'
        '"conversations":[{"from":"human","value":"<image>\\nWas ist das? ä"},'
        '{"from":"gpt","value":"日本 🚗"}],"task":"vqa",'
        '"source":{"dataset":"set","split":"train","row":"1"},"extra":""}\n'
    )
    assert path.read_text(encoding="utf-8") == line * 2
    assert list(read_records(path)) == [(1, LINE), (2, LINE)]
    assert names(path.parent) == ["train.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_json_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": 1, "a": [None, True, "é"]}
    write_json(path, value)
    assert path.read_text(encoding="utf-8") == (
        '{\n  "b": 1,\n  "a": [\n    null,\n    true,\n    "é"\n  ]\n}\n'
    )
    assert read_json(path) == value
    assert list(read_json(path)) == ["b", "a"]


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_block_that_fails_leaves_nothing_behind(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "a"
    if before is not None:
        path.write_bytes(before)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            write_half(path, error)
    assert names(tmp_path) == ([] if before is None else ["a"])
    assert before is None or path.read_bytes() == before


KILLED = """
import sys, time
from pathlib import Path
from adapt.jsonl import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    left = [name for name in names(tmp_path) if name != "a"]
    assert all(name.startswith(".a.") and name.endswith(".tmp") for name in left)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match=r"a: the disk is full \(or over quota\); free some"):
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match=r"cannot be written: "):
        write_bytes(tmp_path / "file" / "a", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EnvironmentFault, match=r"folder: cannot be written: Is a directory"):
        write_bytes(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["file", "folder"]
    assert str(disk_fault(OSError("odd"), Path("a"))) == "a: cannot be written: odd"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json: no such file"),
        (b"", "a.json: the file is empty"),
        (b'{"a": 1,\n "b": }', r"a.json:2:7: not valid JSON \(unexpected character"),
        (b'{"a": [1, 2', r"a.json:1:12: not valid JSON .*cut off"),
        (b'{"a": "\xff"}', r"a.json:1:\d+: not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', r"a.json:1:1: not valid JSON"),
        (b'{"a": NaN}', r"a.json:1:7: not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for read in (read_json, read_lines, read_records):
        with pytest.raises(SourceError, match="is a folder, expected a file"):
            list(read(tmp_path))


def test_lines_are_numbered_with_the_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n1\r\n  \n\t2 \n3")
    assert list(read_lines(path)) == [(2, b"1"), (4, b"2"), (5, b"3")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", r"train.jsonl:3: not a record: Object missing required field `id`"),
        (b"[]", r"train.jsonl:3: not a record: Expected `object`, got `array`"),
        (b'{"id": ', r"train.jsonl:3: not a record: Input data was truncated"),
        (b'{"id": 1}', r"train.jsonl:3: not a record: Expected `str`, got `int` - at `\$.id`"),
        (b'{"id": "\xff"}', r"train.jsonl:3: not a record: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(msgspec.json.encode(LINE) + b"\n\n" + line + b"\n")
    records = read_records(path)
    assert next(records) == (1, LINE)
    with pytest.raises(RecordError, match=message) as caught:
        next(records)
    assert str(caught.value).endswith(f"; run adapt check {path}")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_a_listing_tells_names_and_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    (folder / "b").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"12")
    (folder / "b" / "c.jpg").write_bytes(b"345")
    (folder / "b" / "gone").symlink_to(tmp_path / "nothing")
    (folder / "b" / "loop").symlink_to(folder)
    out = folder / "out"
    wanted = hashlib.sha256(b"a.jpg\x002\x00b/c.jpg\x003\x00b/gone\x00-1\x00").hexdigest()
    assert sha256_listing(folder, without=out) == wanted
    out.mkdir()
    (out / "train.jsonl").write_bytes(b"x")
    assert sha256_listing(folder, without=out) == wanted
    (folder / "a.jpg").write_bytes(b"123")
    assert sha256_listing(folder, without=out) != wanted
