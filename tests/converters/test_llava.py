"""The llava converter: dialects, placeholders, boxes, files; and the real samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from llava_rows import convert, convert_row, llava_row, record, texts, write_list, write_pictures
from PIL import Image

from adapt.check import check_paths
from adapt.cli import run
from adapt.converters import llava
from adapt.dataset import read_manifest
from adapt.errors import SourceError
from adapt.records import Record, Skip


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "raw")


# --- Dialects -----------------------------------------------------------------------------------


def test_llava_row(raw: Path) -> None:
    result = record(convert_row(raw, llava_row("<image>\nWhat?", "A car.", image="a.jpg")))
    assert (result.id, result.image, result.extra) == (
        "llava/train/data.json:0",
        ("a.jpg",),
        '{"id":"x"}',
    )
    assert [(turn.speaker, turn.text) for turn in result.turns] == [
        ("human", "<image>\nWhat?"),
        ("gpt", "A car."),
    ]
    assert (result.source_row(), result.notes) == ("data.json:0", ())


def parts_of(*parts: object) -> list[object]:
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


URL = {"type": "image_url", "image_url": {"url": "a.jpg", "image_wh": [40, 20]}}


@pytest.mark.parametrize(
    ("row", "images", "expected"),
    [
        ({"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]},
         (), ["Hi", "Ho"]),
        ({"conversations": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Ho"}]},
         (), ["Hi", "Ho"]),
        ({"image": "a.jpg", "instruction": "What?", "output": "A car.", "type": "conv"},
         ("a.jpg",), ["<image>\nWhat?", "A car."]),
        ({"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Ho"]]},
         (), ["Hi", "Ho", "Add.\n1 2", "3"]),
        ({"messages": [{"role": "user", "content": "<image>Who?"},
                       {"role": "assistant", "content": "He."},
                       {"role": "user", "content": "Where?<image>"},
                       {"role": "assistant", "content": "Here."}], "images": ["a.jpg", "c.png"]},
         ("a.jpg", "c.png"), ["<image>Who?", "He.", "Where?<image>", "Here."]),
        ({"messages": [{"role": "user", "content": parts_of(URL, "<IMG_CONTEXT>\nWhat?")},
                       {"role": "assistant", "content": "A dog."}]},
         ("a.jpg",), ["<image>\nWhat?", "A dog."]),
        ({"messages": [{"role": "user", "content": parts_of(URL, "What?")},
                       {"role": "assistant", "content": parts_of("A dog.")}]},
         ("a.jpg",), ["<image>\nWhat?", "A dog."]),
        ({"messages": [{"role": "user", "content": parts_of("Compare", {"type": "image"}, "and",
                                                            {"type": "image"})},
                       {"role": "assistant", "content": "Alike."}], "images": ["a.jpg", "c.png"]},
         ("a.jpg", "c.png"), ["Compare<image>\nand<image>\n", "Alike."]),
        ({"messages": [{"role": "user",
                        "content": parts_of({"type": "image", "path": "c.png"}, "?")},
                       {"role": "assistant", "content": "!"}]},
         ("c.png",), ["<image>\n?", "!"]),
        ({"image": "a.jpg", "question": "How many?", "answer": 3}, ("a.jpg",),
         ["<image>\nHow many?", "3"]),
        ({"text": "[UNUSED_TOKEN_146]user\nWhich?\nA. x B. y[UNUSED_TOKEN_145]\n"
                  "[UNUSED_TOKEN_146]assistant\nThe answer is", "image": "a.jpg", "answer": "B"},
         ("a.jpg",), ["<image>\nWhich?\nA. x B. y", "The answer is B"]),
        ({"text": "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n", "answer": "B"},
         (), ["Which?", "B"]),
        ({"text": "Which?", "answer": "B"}, (), ["Which?", "B"]),
        (llava_row("CAM_FRONT: <image>, CAM_BACK: <image>\nSafe?", "Yes.",
                   image=["a.jpg", "c.png"]),
         ("a.jpg", "c.png"), ["CAM_FRONT: <image>, CAM_BACK: <image>\nSafe?", "Yes."]),
        (llava_row("Hi", "Ho", image=""), (), ["Hi", "Ho"]),
        (llava_row("Hi", "Ho", image=None), (), ["Hi", "Ho"]),
        (llava_row("Hi", "Ho", image=[]), (), ["Hi", "Ho"]),
    ],
)  # fmt: skip
def test_dialects(raw: Path, row: object, images: tuple[str, ...], expected: list[str]) -> None:
    result = record(convert_row(raw, row))
    assert (result.image, texts(result)) == (images, expected)
    assert [turn.speaker for turn in result.turns] == ["human", "gpt"] * (len(expected) // 2)


@pytest.mark.parametrize(
    ("row", "expected", "notes"),
    [
        (llava_row("What?", "A car.", image="a.jpg"), ["<image>\nWhat?", "A car."],
         ("placeholder-added",)),
        (llava_row("Same?", "Yes.", image=["a.jpg", "c.png"]),
         ["<image>\n<image>\nSame?", "Yes."], ("placeholder-added",)),
        ({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                       {"role": "assistant", "content": "Ho"}]},
         ["Hi", "Ho"], ("system-message-left-out",)),
        ({"conversations": [{"from": "gpt", "value": "Welcome"}, {"from": "human", "value": "Hi"},
                            {"from": "gpt", "value": "Ho"}]},
         ["Hi", "Ho"], ("leading-answer-left-out",)),
        (llava_row("Hi", "Ho", "And?"), ["Hi", "Ho"], ("open-question-left-out",)),
    ],
)  # fmt: skip
def test_what_is_changed_is_counted(
    raw: Path, row: object, expected: list[str], notes: tuple[str, ...]
) -> None:
    result = record(convert_row(raw, row))
    assert (texts(result), result.notes) == (expected, notes)


def test_what_else_a_row_holds_is_kept(raw: Path) -> None:
    row = {"system": "Be kind.", "instruction": "Hi", "output": "Ho", "id": 7, "type": "conv"}
    assert json.loads(record(convert_row(raw, row)).extra) == {
        "id": 7,
        "type": "conv",
        "system": "Be kind.",
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava_row("<video>\nWhat?", "A race.", video="a.mp4"), "video-not-supported"),
        ({"messages": [{"role": "user", "content": parts_of({"type": "video_url"}, "?")}]},
         "video-not-supported"),
        ({"messages": [{"role": "user", "content": parts_of({"type": "input_audio"}, "?")}]},
         "audio-not-supported"),
        ({"messages": [{"role": "user", "content": parts_of({"type": "file"})}]},
         "content-unknown"),
        ({"messages": [{"role": "user", "content": [{"text": "no type"}]}]}, "content-unknown"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "role-unknown"),
        ({"messages": [{"content": "3"}]}, "turns-malformed"),
        ({"messages": "Hi"}, "turns-malformed"),
        ({"messages": ["Hi"]}, "turns-malformed"),
        ({"messages": []}, "answer-missing"),
        (llava_row("Hi"), "answer-missing"),
        (llava_row("Hi", ""), "answer-empty"),
        (llava_row("Hi", " \n", "And?", "Ho"), "answer-empty"),
        (llava_row(" ", "Ho"), "question-empty"),
        ({"question": "Why?", "image": "a.jpg"}, "answer-empty"),
        ({"question": "Why?", "answer": ["a", "b"]}, "turns-malformed"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"},
                            {"from": "gpt", "value": "c"}]}, "turns-not-alternating"),
        (llava_row("<image><image>", "Ho", image="a.jpg"), "placeholders-mismatch"),
        (llava_row("<image>\nHi", "Ho"), "placeholders-mismatch"),
        (llava_row("<image>\nHi", "See <image>", image="a.jpg"), "placeholder-in-answer"),
        (llava_row("<image>\nHi", "Ho", image=3), "image-malformed"),
        (llava_row("<image>\nHi", "Ho", image=["a.jpg", None]), "image-malformed"),
        ({"conversations": None}, "turns-malformed"),
        ([1, 2], "no-conversation"),
    ],
)  # fmt: skip
def test_skips(raw: Path, row: object, reason: str) -> None:
    write_list(raw, llava_row("Hi", "Ho"), row)
    first, second = convert(raw)
    assert isinstance(first, Record)
    assert isinstance(second, Skip)
    assert (second.place, second.reason) == ("data.json[1]", reason)


# --- Files --------------------------------------------------------------------------------------


def test_files_are_found_by_their_rows(raw: Path) -> None:
    row = llava_row("Hi", "Ho")
    write_list(raw, row, name="b/deep/list.json")
    (raw / "a.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    (raw / "lines.json").write_text(json.dumps(row) + "\n" + json.dumps(row))
    write_list(raw, {"bbox": [1]}, name="boxes.json")
    (raw / "dataset_info.json").write_text('{"a": {"b": 1}}')
    write_list(raw, row, name="too/deep/for/us.json")
    write_list(raw, row, name=".hidden.json")
    assert [result.id for result in map(record, convert(raw))] == [
        "llava/train/a.jsonl:1",
        "llava/train/a.jsonl:3",
        "llava/train/b/deep/list.json:0",
        "llava/train/lines.json:1",
        "llava/train/lines.json:2",
    ]


def test_files_left_out_are_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = llava_row("Hi", "Ho")
    write_list(raw, row, name="TWO.JSON")
    (raw / "head.jsonl").write_text('{"meta": 1}\n' + json.dumps(row) + "\n")
    (raw / "deep").mkdir()
    (raw / "deep" / "wrapped.json").write_text(json.dumps({"data": [row]}))
    out = raw.parent / "out"
    assert run(["convert", "llava", str(raw), "--out", str(out), "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "llava train: left out, the first row is no conversation: deep/wrapped.json, head.jsonl",
        "llava train: 1 read = 1 used + 0 skipped + 0 not in this split; 1 records",
    ]
    named = llava.notices(raw, "train", annotations=raw / "TWO.JSON")
    assert named == []


def test_one_file_by_name(raw: Path, tmp_path: Path) -> None:
    write_list(raw, llava_row("Hi", "Ho"))
    outside = write_list(tmp_path, llava_row("<image>", "Ho", image="a.jpg"), name="out.json")
    (result,) = convert(raw, annotations=outside)
    assert (record(result).id, record(result).image) == ("llava/train/out.json:0", ("a.jpg",))


def test_pictures_are_found_beside_their_file_or_above(raw: Path) -> None:
    (raw / "set").mkdir()
    Image.new("RGB", (8, 8)).save(raw / "set" / "near.jpg")
    Image.new("RGB", (8, 8)).save(raw / "set" / "a.jpg")
    names = ("near.jpg", "c.png", "a.jpg", "gone.jpg", "../a.jpg", "/etc/a.jpg", "vg/b.jpg")
    write_list(raw, *(llava_row("<image>", "x", image=n) for n in names), name="set/data.json")
    assert [record(result).image[0] for result in convert(raw)] == [
        "set/near.jpg",
        "c.png",
        "set/a.jpg",
        "gone.jpg",
        "../a.jpg",
        "/etc/a.jpg",
        "vg/b.jpg",
    ]


def test_a_picture_root_of_its_own(raw: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (12, 8)).save(pictures / "a.jpg")
    write_list(raw, llava_row("<image>", "x", image="a.jpg"))
    out = tmp_path / "out"
    arguments = ["convert", "llava", str(raw), "--out", str(out), "--images", str(pictures)]
    assert run(arguments) == 0
    line = json.loads((out / "train.jsonl").read_text())
    assert (line["image"], line["width_list"]) == (["a.jpg"], [12])
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["root"] == "../pictures"


def test_bad_lines_are_skips_and_a_cut_off_list_is_refused(raw: Path) -> None:
    row = json.dumps(llava_row("Hi", "Ho"))
    (raw / "a.jsonl").write_bytes(f"{row}\n{row[:20]}\n".encode() + b'{"id": "\xff"}\n')
    results = convert(raw)
    assert [getattr(result, "reason", "") for result in results] == ["", "bad-json", "bad-json"]
    (raw / "a.jsonl").unlink()
    path = raw / "data.json"
    path.write_text(f"[{row}, {row[:30]}")
    with pytest.raises(SourceError, match=r"data.json: not valid JSON at byte .* cut off"):
        convert(raw)
    path.write_text(f"[{row[:80]}")
    with pytest.raises(SourceError, match=r"data.json: not valid JSON at byte .* cut off"):
        convert(raw)


def test_odd_files(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.dumps(llava_row("Hi", "Ho"))
    path = raw / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + f"[{row}]".encode())
    assert texts(convert(raw)[0]) == ["Hi", "Ho"]
    digits = "1" * 5000
    path.write_text(f'[{row[:-1]}, "n": {digits}}}, {row}]')
    assert [getattr(result, "reason", "") for result in convert(raw)] == ["bad-json", ""]
    path.write_text(f'[{row[:-1]}, "n": {"[" * 99999}{"]" * 99999}}}]')
    with pytest.raises(SourceError, match="JSON nested too deeply to read"):
        convert(raw)
    path.write_text(f"[{row}]", encoding="utf-16")
    assert run(["convert", "llava", str(raw), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}: is UTF-16 text, expected UTF-8; save it" in capsys.readouterr().err


def test_a_picture_whose_name_is_too_long(raw: Path) -> None:
    name = "x" * 300 + ".jpg"
    assert record(convert_row(raw, llava_row("Hi", "Ho", image=name))).image == (name,)
    options = ("--out", str(raw.parent / "out"), "--max-skips", "1")
    assert run(["convert", "llava", str(raw), *options]) == 3
    skipped = json.loads((raw.parent / "out" / "skipped.jsonl").read_text())
    assert (skipped["reason"], skipped["units"]) == ("image-missing", 1)


def test_wrong_inputs(raw: Path) -> None:
    with pytest.raises(SourceError, match="holds no file of conversations; expected"):
        convert(raw)
    with pytest.raises(SourceError, match="no such file"):
        convert(raw, annotations=raw / "gone.json")
    with pytest.raises(SourceError, match="is a folder"):
        convert(raw, annotations=raw)
    with pytest.raises(SourceError, match="gone: no such folder; expected the one that picture"):
        convert(raw, images=raw / "gone")
    path = write_list(raw, {"a": 1})
    with pytest.raises(SourceError, match="its first row is no conversation; expected a JSON list"):
        convert(raw, annotations=path)
    path.write_text("")
    with pytest.raises(SourceError, match=r"data.json: the file is empty"):
        convert(raw)


def test_parts_hold_every_row_once(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "ROWS_A_PART", 3)
    rows = [llava_row(f"Ä{number} [{'x' * number}]", "Ho") for number in range(11)]
    write_list(raw, *rows, name="a.json")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n\n" for row in rows)
    (raw / "b.jsonl").write_text("\ufeff" + lines, encoding="utf-8", newline="")
    parts = llava.parts(raw, "train")
    assert [part.units for part in parts] == [3, 3, 3, 2] * 2
    results = [record(r) for part in parts for r in llava.convert_part(raw, "train", part)]
    assert [result.id for result in results] == [
        *(f"llava/train/a.json:{number}" for number in range(11)),
        *(f"llava/train/b.jsonl:{2 * number + 1}" for number in range(11)),
    ]
    assert [result.turns[0].text[:2] for result in results] == [f"Ä{n}"[:2] for n in range(11)] * 2


# --- The real samples ---------------------------------------------------------------------------


def test_the_samples(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = shared / "data" / "llava_general"
    arguments = ["convert", "llava", str(raw), "--out", str(tmp_path), "--workers", "1"]
    assert run(arguments) == 3
    assert run([*arguments, "--max-skips", "252"]) == 0
    capsys.readouterr()
    check_paths([tmp_path], images=True)
    assert capsys.readouterr().out == f"{tmp_path}: 49 records in 1 file, 5 pictures; no problems\n"
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    ledger = manifest["splits"]["train"]["ledger"]
    rows = sum(
        len([line for line in path.read_text().splitlines() if line.strip()])
        for path in raw.rglob("*.jsonl")
    ) + sum(len(json.loads(path.read_text())) for path in raw.rglob("*.json"))
    assert ledger["units_in"] == rows == 301
    assert ledger["skip_reasons"] == {
        "answer-empty": 24,
        "image-missing": 180,
        "role-unknown": 12,
        "video-not-supported": 36,
    }
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    held = Counter(line["source"]["row"].split(":")[0].split("/")[-1] for line in lines)
    assert held == {
        "mllm_demo.json": 6,
        "mllm_sft_multi_image_example_data.jsonl": 11,
        "mllm_sft_multi_image_example_data2.jsonl": 10,
        "mllm_sft_single_image_example_data.jsonl": 22,
    }


def test_the_ai2d_prompts(shared: Path, tmp_path: Path) -> None:
    """Their pictures are not here: one stands in for all."""
    source = shared / "data" / "llava_general" / "ai2d" / "ai2d_test.first120.jsonl"
    (tmp_path / "ai2d.jsonl").write_bytes(source.read_bytes())
    results = [record(result) for result in convert(tmp_path)]
    assert len(results) == 120
    assert texts(results[0]) == [
        "<image>\nQuestion: In the diagram shown, which is the producer?\nContext: N/A\n"
        "Options: A. rabbit B. meadow grasses C. deer D. vole",
        "The answer is B",
    ]
    assert not any("UNUSED" in text for result in results for text in texts(result))


def test_all_seeing_v2_conversations(shared: Path, tmp_path: Path) -> None:
    """Texts with relations: two boxes after each <pred>; one text has a broken box."""
    folder = shared / "data" / "llava_general" / "as_v2_prompt_examples" / "conversation"
    rows = []
    for path in sorted(folder.glob("*_conv.txt")):
        for turn in path.read_text().split("---\n"):
            if turn.strip().startswith("Answer:"):
                rows.append(llava_row("<image>\nWhat?", turn.strip()[7:].strip(), image="a.jpg"))
    write_list(tmp_path, *rows)
    results = convert(tmp_path)
    skips = [result for result in results if isinstance(result, Skip)]
    assert [(skip.place, skip.reason) for skip in skips] == [("data.json[0]", "box-malformed")]
    for result, row in zip(results, rows, strict=True):
        if isinstance(result, Record):
            assert texts(result)[1] == row["conversations"][1]["value"]  # type: ignore[index]
            assert result.notes in ((), ("boxes 0-1000 of the picture (data.json)",))
