"""The conversion runner, driven by an outside converter through its entry point."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from folders import tree
from jsonschema import Draft202012Validator
from PIL import Image
from shapes_runs import (
    COLOURS,
    convert,
    install_plugin,
    lines,
    make_raw,
    manifest,
    write_rows,
)

from adapt.cli import run
from adapt.resources import schema_path


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(monkeypatch)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw")


def test_a_conversion_writes_records_pictures_and_manifest(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(raw, out, "--workers", "2") == 0
    assert sorted(tree(out)) == [
        "dataset.json",
        *[f"images/s{i}.png" for i in range(6)],
        "skipped.jsonl",
        "train.jsonl",
        "val.jsonl",
    ]
    assert lines(out / "train.jsonl")[1] == {
        "id": "shapes/train/1",
        "image": ["images/s1.png"],
        "width_list": [8],
        "height_list": [8],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colour is this square?"},
            {"from": "gpt", "value": "lime"},
        ],
        "task": "classification",
        "source": {"dataset": "shapes", "split": "train", "row": "1"},
        "extra": "",
    }
    described = manifest(out)
    Draft202012Validator(json.loads(schema_path("dataset").read_text())).validate(described)
    assert described["root"] == "."
    assert list(described["splits"]) == ["train", "val"]
    assert described["splits"]["val"]["ledger"]["units_in"] == 2
    assert "6 read = 6 used + 0 skipped + 0 not in this split; 6 records" in capsys.readouterr().out


def test_output_is_the_same_for_any_number_of_workers(raw: Path, tmp_path: Path) -> None:
    rows = [{"name": f"s{i % 7}", "colour": COLOURS[i % 7 % 4]} for i in range(40)]
    rows[5]["bad"] = "no colour"
    rows[9]["twice"] = "yes"
    write_rows(raw, "train", rows)
    trees = []
    for workers in ("1", "2", "3"):
        out = tmp_path / workers
        assert convert(raw, out, "--workers", workers, "--max-skips", "1") == 0
        trees.append(tree(out))
    assert trees[0] == trees[1] == trees[2]


def test_the_ledger_counts_every_unit_once(raw: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "colour": "red", "twice": 1},
        {"name": "b", "colour": "red", "split": "val"},
        {"bad": "no name"},
        {"name": "c", "colour": "red", "broken": 1},
        {"name": "d", "colour": "red", "broken": 1, "twice": 1},
        {"name": "e", "colour": "blue"},
    ]
    write_rows(raw, "train", rows)
    out = tmp_path / "out"
    assert convert(raw, out, "--split", "train", "--max-skips", "3") == 0
    assert manifest(out)["splits"]["train"]["ledger"] == {
        "units_in": 6,
        "used": 2,
        "skipped": 3,
        "not_in_split": 1,
        "records": 3,
        "objects_dropped": 0,
        "skip_reasons": {"bad-row": 1, "image-broken": 2},
        "drop_reasons": {},
        "notes": {},
    }
    assert [
        (line["place"], line["reason"], line["units"]) for line in lines(out / "skipped.jsonl")
    ] == [
        ("train.json[2]", "bad-row", 1),
        ("shapes/train/3", "image-broken", 1),
        ("shapes/train/4", "image-broken", 1),
        ("shapes/train/4#2", "image-broken", 0),
    ]
    assert [record["id"] for record in lines(out / "train.jsonl")] == [
        "shapes/train/0",
        "shapes/train/0#2",
        "shapes/train/5",
    ]


def test_too_many_skips_leave_no_records_and_keep_the_state(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(raw, "train", [{"name": "a", "colour": "red"}, {"bad": "torn"}])
    out = tmp_path / "out"
    assert convert(raw, out, "--split", "train") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "adapt: shapes train: 1 of 2 units lost, allowed 0 (skipped: 1 bad-row); "
        f"see {out}/skipped.jsonl; mend them, or allow them with --max-skips 1"
    )
    assert not (out / "train.jsonl").exists()
    assert not (out / "dataset.json").exists()
    assert lines(out / "skipped.jsonl")[0]["detail"] == "torn"
    assert (out / ".adapt" / "train" / "000000.part").exists()
    assert convert(raw, out, "--split", "train", "--max-skips", "1") == 0
    assert len(lines(out / "train.jsonl")) == 1
    assert not (out / ".adapt").exists()


def test_a_second_run_does_nothing_and_says_so(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(raw, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert convert(raw, out) == 0
    assert capsys.readouterr().out.splitlines() == [
        "shapes train: nothing to do: 6 records of the same input and options",
        "shapes val: nothing to do: 2 records of the same input and options",
    ]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_other_options_are_refused_without_overwrite(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(raw, out) == 0
    capsys.readouterr()
    assert convert(raw, out, "--style", "short") == 2
    assert capsys.readouterr().err == (
        f"adapt: {out}: train was made with option style long, now short; --overwrite replaces it\n"
    )
    assert convert(raw, out, "--style", "short", "--overwrite") == 0
    assert lines(out / "val.jsonl")[0]["conversations"][0]["value"] == "<image>\nColour?"


def test_another_input_is_refused_and_overwrite_makes_pictures_again(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(raw, out, "--split", "val") == 0
    write_rows(raw, "val", [{"name": "s0", "colour": "blue"}])
    assert convert(raw, out, "--split", "val") == 2
    assert "other input (val.json)" in capsys.readouterr().err
    assert convert(raw, out, "--split", "val", "--overwrite") == 0
    with Image.open(out / "images" / "s0.png") as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)


def test_a_missing_picture_is_made_again(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(raw, out) == 0
    whole = tree(out)
    kept = (out / "images" / "s4.png").stat().st_mtime_ns
    (out / "images" / "s3.png").unlink()
    assert convert(raw, out) == 0
    assert tree(out) == whole
    assert (out / "images" / "s4.png").stat().st_mtime_ns == kept


def test_a_mended_raw_file_is_taken_on_the_next_run(raw: Path, tmp_path: Path) -> None:
    """A part that lost units is done again on resume."""
    listing = tmp_path / "listing"
    listing.mkdir()
    (listing / "list.json").write_text(
        json.dumps([{"question": "q", "answer": "a", "image": "x.png"}])
    )
    out = tmp_path / "out"
    arguments = ["convert", "listing", str(listing), "--out", str(out)]
    assert run(arguments) == 3
    assert lines(out / "skipped.jsonl")[0]["reason"] == "image-missing"
    Image.new("RGB", (5, 4)).save(listing / "x.png")
    assert run(arguments) == 0
    record = lines(out / "train.jsonl")[0]
    assert (record["width_list"], record["height_list"]) == ([5], [4])
    assert (out / manifest(out)["root"] / record["image"][0]).resolve() == listing / "x.png"


def test_limit_takes_the_first_units(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(raw, out, "--limit", "3") == 0
    assert [record["id"] for record in lines(out / "train.jsonl")] == [
        f"shapes/train/{i}" for i in range(3)
    ]
    assert manifest(out)["splits"]["train"]["ledger"]["units_in"] == 3


def wait_for_parts(process: subprocess.Popen[Any], out: Path) -> None:
    """Wait until a conversion has begun to leave parts."""
    while not list(out.glob(".adapt/train/*.part")):
        assert process.poll() is None, "the conversion ended before it could be stopped"
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_gives_the_same_bytes(
    raw: Path, tmp_path: Path, seed: int
) -> None:
    rows = [{"name": f"s{i}", "colour": COLOURS[i % 4]} for i in range(60)]
    write_rows(raw, "train", rows)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    command = [sys.executable, "-m", "adapt", "convert", "shapes", str(raw), "--split", "train"]
    command += ["--delay-s", "0.02", "--workers", "2", "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(undisturbed)], check=True, stderr=subprocess.DEVNULL)
    whole_s = time.monotonic() - start
    chance = random.Random(seed)
    for attempt in range(6):
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
        if attempt == 0:
            # Once at least there is something to go on with.
            wait_for_parts(process, out)
        else:
            time.sleep(whole_s * chance.uniform(0.2, 0.9))
        process.kill()
        process.wait()
    assert subprocess.run([*command, str(out)], check=False).returncode == 0
    assert tree(out) == tree(undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_work_is_resumable(raw: Path, tmp_path: Path, number: int, status: int) -> None:
    write_rows(raw, "train", [{"name": f"s{i}", "colour": "red"} for i in range(30)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "adapt", "convert", "shapes", str(raw), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--split", "train", "--delay-s", "0.2", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_parts(process, out)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert "run the same command again" in errors.splitlines()[-1]
    assert not (out / "train.jsonl").exists()
    assert convert(raw, out, "--split", "train", "--delay-s", "0.2", "--workers", "4") == 0
    assert len(lines(out / "train.jsonl")) == 30


def test_a_signal_while_the_workers_start_is_one_line(raw: Path, tmp_path: Path) -> None:
    write_rows(raw, "train", [{"name": f"s{i}", "colour": "red"} for i in range(30)])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "adapt", "convert", "shapes", str(raw), "--out", str(out)]
    command += ["--split", "train", "--delay-s", "0.1", "--workers", "2"]
    for step in range(8):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        # The job file is written just before the workers are started.
        while not (out / ".adapt" / "train.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.08 * step)
        process.terminate()
        _, errors = process.communicate()
        assert process.returncode == 143
        assert errors.splitlines()[-1] == ("adapt: terminated; run the same command again to go on")
        assert "Traceback" not in errors
        shutil.rmtree(out, ignore_errors=True)


def test_two_conversions_do_not_write_one_folder(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_rows(raw, "train", [{"name": f"s{i}", "colour": "red"} for i in range(20)])
    command = [sys.executable, "-m", "adapt", "convert", "shapes", str(raw), "--out", str(out)]
    first = subprocess.Popen([*command, "--delay-s", "0.2"], stderr=subprocess.DEVNULL)
    wait_for_parts(first, out)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another adapt convert is writing here" in second.stderr
    assert first.wait() == 0


def test_a_broken_raw_file_leaves_nothing_behind(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "train.json").write_text('[{"name": "s0", ')
    arguments = ["convert", "shapes", str(raw), "--split", "train", "--out"]
    assert run([*arguments, str(tmp_path / "new")]) == 2
    assert f"{raw / 'train.json'}:1:" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    assert run([*arguments, str(tmp_path / "there")]) == 2
    assert list((tmp_path / "there").iterdir()) == []


def test_a_full_disk_is_one_line_and_nothing_half_written(raw: Path, tmp_path: Path) -> None:
    """A limit on the size of a file gives the write error that a full disk or quota gives."""
    rows = [{"name": f"s{i}", "colour": "red" * 1} for i in range(2)]
    rows[1]["name"] = "long" * 20
    write_rows(raw, "train", rows * 200)
    out = tmp_path / "out"
    script = (
        "import resource, signal, sys; from adapt.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        f"main(['convert', 'shapes', {str(raw)!r}, '--out', {str(out)!r}, '--workers', '1',"
        " '--split', 'train'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        "train.jsonl: the disk is full (or over quota); free some space and run again"
    )
    assert not (out / "train.jsonl").exists()
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "shape"], "no converter is called shape (did you mean shapes?)"),
        (["convert", "shapes", "RAW", "--split", "vall"], "has no split vall (did you mean val?)"),
        (["convert", "shapes", "RAW/none"], "RAW/none: no such folder; expected {train,val}.json"),
        (["convert", "shapes", "RAW/train.json"], "RAW/train.json: is a file; expected"),
        (["convert", "shapes", "RAW", "--out", "RAW/val.json"], "RAW/val.json: is a file"),
        (["convert", "shapes", "RAW", "--style", "tall"], "'tall' is not one of"),
    ],
)
def test_a_users_mistake_is_one_line(
    raw: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([argument.replace("RAW", str(raw)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message.replace("RAW", str(raw)) in error
    assert len(error.splitlines()) == 1


def test_a_record_that_breaks_the_contract_is_a_skip(raw: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"name": "a", "colour": "red"}, {"name": "b", "colour": "red"}]
    rows[1]["answer"] = "half a <box> in it"
    write_rows(raw, "train", rows)
    out = tmp_path / "out"
    options = ("--split", "train", "--workers", "1")
    assert convert(raw, out, *options) == 3
    assert lines(out / "skipped.jsonl") == [
        {
            "split": "train",
            "place": "shapes/train/1",
            "reason": "breaks-contract",
            "detail": "$.conversations[1].value found <box> at 7, expected </box> after it",
            "units": 1,
        }
    ]
    assert convert(raw, out, *options, "--max-skips", "1") == 0
    assert [record["id"] for record in lines(out / "train.jsonl")] == ["shapes/train/0"]
    assert run(["check", str(out), "--images"]) == 0


def test_no_records_file_without_a_record(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(raw, "train", [{"name": "a", "colour": "red", "bad": "no colour"}])
    out = tmp_path / "out"
    assert convert(raw, out, "--split", "train", "--max-skips", "5") == 3
    assert "mend them; no record is left to write" in capsys.readouterr().err
    assert not (out / "train.jsonl").exists()


def test_records_made_by_hand_are_not_replaced(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.jsonl").write_text("by hand\n")
    assert convert(raw, out, "--split", "train") == 2
    assert "train.jsonl: is there already, and dataset.json does not say" in capsys.readouterr().err
    assert tree(out) == {"train.jsonl": b"by hand\n"}
    assert convert(raw, out, "--split", "train", "--overwrite") == 0
    assert len(lines(out / "train.jsonl")) == 6


def test_overwriting_another_converter_s_dataset_drops_all_of_it(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "Why?", "answer": "So."}, {"question": "Why?"}]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    llava = ["convert", "llava", str(tmp_path / "rows"), "--out", str(out), "--max-skips", "1"]
    assert run(llava) == 0
    assert [line["split"] for line in lines(out / "skipped.jsonl")] == ["train"]
    assert convert(raw, out, "--split", "val") == 2
    assert "holds a dataset of llava; give another --out" in capsys.readouterr().err
    assert convert(raw, out, "--split", "val", "--overwrite") == 0
    assert lines(out / "skipped.jsonl") == []
    assert not (out / "train.jsonl").exists()
    assert run(["check", str(out), "--images"]) == 0


def test_a_raw_file_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    row = json.dumps({"question": "Why?", "answer": "So."}) + "\n"
    (raw / "train.jsonl").write_text(row)
    for more in ((), ("--overwrite",)):
        assert run(["convert", "llava", str(raw), "--out", str(raw), *more]) == 2
        assert "is one of the raw files, and would be replaced" in capsys.readouterr().err
        assert tree(raw) == {"train.jsonl": row.encode()}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("converter", None, "$.converter found null, expected an object"),
        ("splits", {"train": 5}, "Expected `object`, got `int` - at `$.splits[...]`"),
        ("splits", {"train": {"files": 5}}, "Expected `array`, got `int`"),
        ("licence", 5, "$.licence found 5, expected a string"),
    ],
)
def test_a_damaged_dataset_json_is_one_line(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: object,
    message: str,
) -> None:
    out = tmp_path / "out"
    assert convert(raw, out) == 0
    (out / "dataset.json").write_text(json.dumps(manifest(out) | {key: value}))
    capsys.readouterr()
    assert convert(raw, out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"adapt: {out / 'dataset.json'}: {message}")
    assert error.count("\n") == 1


def test_numbers_and_names_that_json_cannot_hold(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(raw, tmp_path / "out", "--limit", "1" + "0" * 30) == 2
    assert "--limit is 1000000000000000000000000000000, expected at" in capsys.readouterr().err
    (raw / "train.json").unlink()
    name = os.fsdecode(b"rows\xff.jsonl")
    (raw / name).write_text('{"question": "Why?", "answer": "So."}\n')
    assert run(["convert", "llava", str(raw), "--out", str(tmp_path / "out")]) == 2
    assert "b'rows\\xff.jsonl': a name that is no UTF-8; rename it" in capsys.readouterr().err
