"""`adapt check`: every problem with its place, and one line when there is none."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from record_values import record, turns

from adapt.check import check_paths
from adapt.cli import run
from adapt.errors import CheckFailed, SourceError


def write(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(value) + b"\n" for value in values))
    return path


def failed(capsys: pytest.CaptureFixture[str], path: Path, *, images: bool = False) -> list[str]:
    """Check a path that has problems; return them, the folder's name taken out."""
    with pytest.raises(CheckFailed) as caught:
        check_paths([path], images=images)
    folder = path if path.is_dir() else path.parent
    lines = capsys.readouterr().out.replace(f"{folder}/", "").splitlines()
    word = "problem" if len(lines) == 1 else "problems"
    assert str(caught.value) == f"{len(lines)} {word} found"
    return lines


def passed(capsys: pytest.CaptureFixture[str], path: Path, *, images: bool = False) -> str:
    check_paths([path], images=images)
    return capsys.readouterr().out.removeprefix(f"{path}: ")


# --- Files --------------------------------------------------------------------------------------


def test_a_clean_file_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "train.jsonl", *(record(n) for n in range(3)))
    assert passed(capsys, path) == "3 records in 1 file; no problems\n"


def test_records_without_answer_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_question = record(1, conversations=turns("<image>", ""))
    path = write(tmp_path / "val.jsonl", record(0), open_question)
    assert passed(capsys, path) == "2 records in 1 file, 1 without an answer; no problems\n"


def test_ids_are_unique_in_the_whole_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", record(0), record(1))
    write(tmp_path / "train-00001-of-00002.jsonl", record(2), record(1))
    write(tmp_path / "val.jsonl", record(0) | {"task": 3})
    assert failed(capsys, tmp_path) == [
        'train-00001-of-00002.jsonl:2: $.id found "set/train/1" again, expected an id of its own '
        "(first at train-00000-of-00002.jsonl:2)",
        "val.jsonl:1: $.task found 3, expected a string",
        'val.jsonl:1: $.id found "set/train/0" again, expected an id of its own '
        "(first at train-00000-of-00002.jsonl:1)",
    ]


def test_ugly_line_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [msgspec.json.encode(record(number)) for number in range(4)]
    path = tmp_path / "train.jsonl"
    body = lines[0] + b"\n" + lines[1] + b"\r\n \n" + lines[2] + b"\r\n" + lines[3]
    path.write_bytes(b"\xef\xbb\xbf" + body)
    assert failed(capsys, path) == [
        "train.jsonl:3: found a blank line, expected a record",
        "train.jsonl:1: found a byte order mark, expected UTF-8 without one",
        "train.jsonl:2: found an end of CR LF, expected LF alone (2 such lines)",
        "train.jsonl:5: found no newline at the end of the file, expected one; is it cut off?",
    ]


def test_lines_are_numbered_across_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 30_000
    values = [record(n, conversations=turns("<image>", long)) for n in range(30)]
    values[23]["task"] = ""
    path = write(tmp_path / "train.jsonl", *values)
    assert failed(capsys, path) == [
        "train.jsonl:24: $.task found an empty string, expected at least 1 character"
    ]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"[{}]", "a JSON list"),
        ('{"id": 1}'.encode("utf-16"), "UTF-16 text"),
        (b"\x1f\x8b\x08\x00", "gzip data"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PAR1", "a Parquet file"),
    ],
)
def test_files_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, kind: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(content)
    assert failed(capsys, folder) == [
        f"train.jsonl: found {kind}, expected UTF-8 text with one JSON object a line"
    ]


def test_several_paths_and_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "a" / "train.jsonl", record(0))
    bad = write(tmp_path / "b" / "train.jsonl", record(0, task=""))
    assert run(["check", str(good), str(bad.parent)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{good}: 1 record in 1 file; no problems",
        f"{bad}:1: $.task found an empty string, expected at least 1 character",
    ]
    assert err == "adapt: 1 problem found\n"
    assert run(["check", str(good)]) == 0
    assert run(["check", str(tmp_path / "nowhere")]) == 2


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no records"):
        check_paths([tmp_path], images=False)


# --- dataset.json -------------------------------------------------------------------------------


def manifest(path: Path, records: int, **ledger: object) -> dict[str, Any]:
    converter = {"name": "set", "version": "1"}
    counts = {"units_in": 3, "used": 2, "skipped": 1, "not_in_split": 0, "records": records}
    reasons = {"objects_dropped": 0, "skip_reasons": {"lost": 1}, "drop_reasons": {}, "notes": {}}
    entry = {
        "made_by": {"converter": converter, "options": {}, "limit": None, "inputs": {}},
        "images": "raw",
        "files": [
            {
                "path": path.name,
                "records": records,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        ],
        "ledger": counts | reasons | ledger,
    }
    head = {"format": 1, "name": "set", "converter": converter, "role": "domain", "domain": "d"}
    texts = {"root": ".", "licence": "", "source": "", "coordinates": ""}
    return head | texts | {"splits": {"train": entry}}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    path = write(folder / "train.jsonl", record(0), record(1))
    skip = {"split": "train", "place": "x", "reason": "lost", "detail": "y", "units": 1}
    write(folder / "skipped.jsonl", skip)
    (folder / "dataset.json").write_text(json.dumps(manifest(path, 2)))
    return folder


def test_a_dataset_that_agrees(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert passed(capsys, dataset) == "2 records in 1 file; no problems\n"


def test_a_file_that_changed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / "train.jsonl"
    before = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    write(path, record(0), record(1), record(2))
    after = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert failed(capsys, dataset) == [
        "train.jsonl: found 3 records, expected 2, as dataset.json says",
        f"train.jsonl: found sha256 {after}..., expected {before}..., as dataset.json says",
        "dataset.json: $.splits.train.ledger.records found 2, expected 3, as the files hold",
    ]


def test_a_file_that_is_gone(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "train.jsonl").unlink()
    assert failed(capsys, dataset)[0] == (
        "train.jsonl: found no such file, expected the records that dataset.json names"
    )


def test_a_ledger_that_does_not_add_up(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / "train.jsonl"
    wrong = manifest(path, 2, units_in=7, skipped=2, objects_dropped=4)
    (dataset / "dataset.json").write_text(json.dumps(wrong))
    ledger = "dataset.json: $.splits.train.ledger"
    assert failed(capsys, dataset) == [
        f"{ledger} found 7 read = 2 used + 2 skipped + 0 not in this split, expected units_in = "
        "used + skipped + not_in_split",
        f"{ledger}.skipped found 2, expected 1, as skipped.jsonl holds",
        f"{ledger}.skip_reasons found 1, expected 2, as skipped says",
        f"{ledger}.objects_dropped found 4, expected 0, as drop_reasons says",
    ]


def test_foreign_lines_in_skipped_jsonl(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (dataset / "skipped.jsonl").open("ab") as file:
        file.write(b'{"split": "tr\xff", "units": 1}\n{"split": 3}\n')
    first, second = failed(capsys, dataset)
    assert first.startswith("skipped.jsonl:2: found no line of a converter ('utf-8' codec")
    assert second.startswith("skipped.jsonl:3: found no line of a converter (Expected `str`")


def test_a_damaged_dataset_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = manifest(dataset / "train.jsonl", 2) | {"role": "dommain"}
    del wrong["root"]
    (dataset / "dataset.json").write_text(json.dumps(wrong))
    assert failed(capsys, dataset) == [
        "dataset.json: $.root found nothing, expected this key",
        'dataset.json: $.role found "dommain", expected "domain" or "general"',
    ]


# --- Pictures -----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 16), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    values = [record(n, image=[f"images/{n % 3}.png"]) for n in range(6)]
    write(folder / "train.jsonl", *values)
    return folder


def test_pictures_that_fit(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "6 records in 1 file, 3 pictures; no problems\n"
    assert passed(capsys, pictures, images=True) == expected


def test_pictures_that_do_not_fit(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (30, 16)).save(pictures / "images" / "0.png")
    (pictures / "images" / "1.png").write_bytes(b"")
    (pictures / "images" / "2.png").unlink()
    lines = failed(capsys, pictures, images=True)
    assert len(lines) == 3
    assert lines[0] == (
        "train.jsonl:1: $.width_list[0] found 32, expected 30, as images/0.png has it "
        "(and in 1 more records)"
    )
    expected = "(and in 1 more records)"
    assert lines[1] == (
        'train.jsonl:2: $.image[0] found "images/1.png": images/1.png: the file has 0 bytes '
        f"(image-empty), expected a picture below {pictures} that opens {expected}"
    )
    assert lines[2] == (
        'train.jsonl:3: $.image[0] found "images/2.png": images/2.png: no such file or directory '
        f"(image-missing), expected a picture below {pictures} that opens {expected}"
    )


def test_sizes_that_contradict_each_other(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [record(n, image=["images/0.png"], height_list=[16 + n]) for n in range(3)]
    write(pictures / "train.jsonl", *values)
    assert failed(capsys, pictures, images=True) == [
        "train.jsonl:2: $.height_list[0] found 17, expected 16, as images/0.png has it",
        "train.jsonl:3: $.height_list[0] found 18, expected 16, as images/0.png has it",
    ]


def test_a_link_out_of_the_root(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pictures / "images" / "0.png", tmp_path / "secret.png")
    (pictures / "images" / "0.png").unlink()
    (pictures / "images" / "0.png").symlink_to(tmp_path / "secret.png")
    assert failed(capsys, pictures, images=True) == [
        'train.jsonl:1: $.image[0] found "images/0.png": a link that leads out of the dataset\'s '
        f"root, expected a picture below {pictures} that opens (and in 1 more records)"
    ]


def test_many_pictures_in_several_processes(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(200):
        name = pictures / "images" / f"{number}.png"
        Image.new("RGB", (32, 16 if number != 150 else 17)).save(name)
    write(pictures / "train.jsonl", *(record(n, image=[f"images/{n}.png"]) for n in range(200)))
    assert failed(capsys, pictures, images=True) == [
        "train.jsonl:151: $.height_list[0] found 16, expected 17, as images/150.png has it"
    ]
