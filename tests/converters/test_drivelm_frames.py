"""Annotation files: found, indexed, and read frame by frame, damaged ones too."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapt.converters import drivelm
from adapt.errors import SourceError, UsageError
from adapt.records import Record, Result, Skip

C1 = "<c1,CAM_BACK,1088.3,497.5>"

Json = dict[str, Any]
Annotations = MakeFrame = Callable[..., dict[str, Any]]
WriteRaw = Callable[..., Path]
Convert = Callable[..., list[Result]]
Records = Callable[..., list[Record]]
Edit = Callable[[Json], object]
Edited = Callable[[Edit], Path]


def skips(results: list[Result]) -> list[tuple[str, str, int]]:
    return [(each.place, each.reason, each.units) for each in results if isinstance(each, Skip)]


class TestSources:
    def test_splits_by_their_names(self, raw: Path) -> None:
        assert drivelm.splits(raw) == ["train"]
        (raw / "v1_1_val_nus_q_only.json").write_text("{}")
        assert drivelm.splits(raw) == ["train", "val"]
        assert drivelm.sources(raw, "val") == [raw / "v1_1_val_nus_q_only.json"]

    @pytest.mark.parametrize(
        ("name", "split"),
        [
            ("v1_1_train_nus.sample.json", "train"),
            ("my-val.json", "val"),
            ("VAL_2.json", "val"),
            ("train.json", "train"),
        ],
    )
    def test_a_given_file_names_its_split(self, raw: Path, name: str, split: str) -> None:
        (raw / name).write_text("{}")
        assert drivelm.splits(raw, annotations=raw / name) == [split]

    @pytest.mark.parametrize("name", ["test_eval.json", "train_val.json", "retraining.json"])
    def test_a_name_that_does_not_say(self, raw: Path, name: str) -> None:
        (raw / name).write_text("{}")
        with pytest.raises(UsageError, match="--split train or --split val"):
            drivelm.splits(raw, annotations=raw / name)

    def test_a_given_file_may_lie_elsewhere(
        self, raw: Path, tmp_path: Path, records: Records
    ) -> None:
        path = (raw / "v1_1_train_nus.json").rename(tmp_path / "mine.json")
        assert len(records(raw, annotations=path)) == 12
        assert drivelm.sources(raw, "train", annotations=path) == [path]

    @pytest.mark.parametrize("folder", ["QA_dataset_nus", "data/QA_dataset_nus"])
    def test_the_official_layouts(
        self,
        tmp_path: Path,
        folder: str,
        annotations: Annotations,
        write_raw: WriteRaw,
        records: Records,
    ) -> None:
        """DriveLM's repository: data/QA_dataset_nus/*.json beside data/nuscenes."""
        base = tmp_path / folder
        write_raw(base.parent, annotations("f1"))
        base.mkdir()
        (base.parent / "v1_1_train_nus.json").rename(base / "v1_1_train_nus.json")
        assert len(records(tmp_path)) == 6

    def test_the_sample_is_found_by_its_name(self, raw: Path, records: Records) -> None:
        (raw / "v1_1_train_nus.json").rename(raw / "v1_1_train_nus.sample.json")
        assert drivelm.splits(raw) == ["train"]
        assert len(records(raw)) == 12

    def test_two_files_of_one_split(self, raw: Path) -> None:
        for name in ("a", "b"):
            (raw / name).mkdir()
            (raw / name / "v1_1_val_nus_q_only.json").write_text("{}")
        with pytest.raises(SourceError, match="name the one to read"):
            drivelm.sources(raw, "val")

    def test_missing(self, tmp_path: Path) -> None:
        assert drivelm.splits(tmp_path) == []
        with pytest.raises(SourceError, match=r"no v1_1_train_nus\.json .*--annotations"):
            drivelm.sources(tmp_path, "train")

    def test_a_folder_of_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "v1_1_train_nus.json").mkdir()
        assert drivelm.splits(tmp_path) == ["train"]
        with pytest.raises(SourceError, match=r"v1_1_train_nus\.json: is a folder"):
            drivelm.sources(tmp_path, "train")

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "no such file"),
            (lambda path: path.mkdir(), "is a folder"),
            (lambda path: path.write_text(""), "the file is empty"),
        ],
    )
    def test_a_given_file_that_is_none(
        self, tmp_path: Path, make: Callable[[Path], object], message: str
    ) -> None:
        make(tmp_path / "train.json")
        for function in (drivelm.sources, drivelm.parts):
            with pytest.raises(SourceError, match=message):
                function(tmp_path, "train", annotations=tmp_path / "train.json")
        with pytest.raises(SourceError, match=message):
            drivelm.splits(tmp_path, annotations=tmp_path / "train.json")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "Expected `object`, got `array`"),
            ('"text"', "Expected `object`"),
            ("12", "Expected `object`"),
            ("\ufeff[]", "Expected `object`, got `array`"),
            ('\ufeff{"s1": 1} x', "not valid JSON at byte 14: trailing characters"),
            ('{"s1": {"key_frames": }}', "not valid JSON at byte 22"),
            ('{"s1": {"key_frames": {', r"not valid JSON at byte 23 \(its end\)"),
            ('{"s1": 1} x', "not valid JSON at byte 11: trailing characters"),
        ],
    )
    def test_no_json_of_this_kind(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "v1_1_train_nus.json").write_text(text)
        with pytest.raises(SourceError, match=message):
            drivelm.parts(tmp_path, "train")

    def test_a_byte_order_mark_is_passed_over(self, raw: Path, records: Records) -> None:
        path = raw / "v1_1_train_nus.json"
        without = records(raw)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert records(raw) == without

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ('{"s1": 1}'.encode("utf-16"), "is UTF-16 text, expected UTF-8; save it as UTF-8"),
            (b'{"s\xff": {}}', r"a key is no UTF-8 text \(invalid start byte\): b's.xff'"),
            (b'{"s1": ' + b"[" * 99999 + b"]" * 99999 + b"}", "JSON nested too deeply to read"),
        ],
    )
    def test_no_text_of_this_kind(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "v1_1_train_nus.json").write_bytes(data)
        with pytest.raises(SourceError, match=message):
            drivelm.parts(tmp_path, "train")

    def test_cut_off(self, raw: Path) -> None:
        path = raw / "v1_1_train_nus.json"
        data = path.read_bytes()
        for keep in (0.2, 0.7, 0.99):
            path.write_bytes(data[: int(len(data) * keep)])
            size = path.stat().st_size
            with pytest.raises(SourceError, match=rf"byte {size} \(its end\).*cut off"):
                drivelm.parts(raw, "train")

    def test_the_file_changes_while_it_is_read(self, raw: Path) -> None:
        parts = drivelm.parts(raw, "train")
        (raw / "v1_1_train_nus.json").write_text("{}")
        with pytest.raises(SourceError, match="changed while it was read"):
            list(drivelm.convert_part(raw, "train", parts[1]))

    @pytest.mark.parametrize("token", ["s1", "f2"])
    def test_a_token_twice(self, raw: Path, token: str, annotations: Annotations) -> None:
        path = raw / "v1_1_train_nus.json"
        text = path.read_text()
        if token == "s1":
            text = text[:-1].rstrip() + ',"s1":' + json.dumps(annotations("f1")["s1"]) + "}"
        else:
            text = text.replace('"f1":', '"f2":')
        path.write_text(text)
        with pytest.raises(SourceError, match=rf"{token} \(again at byte \d+\) stands in it twice"):
            drivelm.parts(raw, "train")

    def test_a_list_of_questions_twice(self, raw: Path) -> None:
        path = raw / "v1_1_train_nus.json"
        path.write_text(path.read_text().replace('"prediction":', '"perception":'))
        with pytest.raises(SourceError, match="a list of questions stands in it twice"):
            drivelm.parts(raw, "train")

    def test_quoted_keys_in_texts_are_no_questions(
        self, tmp_path: Path, annotations: Annotations, write_raw: WriteRaw, records: Records
    ) -> None:
        content = annotations("f1")
        content["s1"]["key_frames"]["f1"]["QA"]["planning"][0]["A"] = 'He said {"Q": 1}.'
        raw = write_raw(tmp_path, content)
        assert records(raw)[4].turns[1].text == 'He said {"Q": 1}.'


@pytest.fixture
def edited(tmp_path: Path, annotations: Annotations, write_raw: WriteRaw) -> Edited:
    """Write two frames, the first one edited."""

    def write(edit: Edit) -> Path:
        content = annotations("f1", "f2")
        edit(content["s1"]["key_frames"]["f1"])
        return write_raw(tmp_path / "raw", content)

    return write


FRAME = "v1_1_train_nus.json: scene s1 frame f1"


class TestBadQuestions:
    """One question is lost, its neighbours are not."""

    @pytest.mark.parametrize(
        ("edit", "number", "reason"),
        [
            (lambda f: f["QA"]["planning"].__setitem__(0, "text"), 4, "bad-question"),
            (lambda f: f["QA"]["planning"].__setitem__(0, None), 4, "bad-question"),
            (lambda f: f["QA"]["planning"][0].pop("Q"), 4, "no-question"),
            (lambda f: f["QA"]["planning"][0].update(Q=None), 4, "no-question"),
            (lambda f: f["QA"]["planning"][0].update(Q=" "), 4, "no-question"),
            (lambda f: f["QA"]["planning"][0].update(Q=3), 4, "no-question"),
            (lambda f: f["QA"]["planning"][0].update(A=["x"]), 4, "bad-answer"),
            (lambda f: f["QA"]["planning"][0].update(A=3), 4, "bad-answer"),
            (lambda f: f["QA"]["planning"][0].update(A=None), 4, "no-answer"),
            (lambda f: f["QA"]["planning"][0].update(A=""), 4, "no-answer"),
            (lambda f: f["QA"]["planning"][0].pop("A"), 4, "no-answer"),
            (lambda f: f["QA"]["planning"][0].update(A="<image>"), 4, "placeholder-in-text"),
            (lambda f: f["QA"]["planning"][0].update(Q="See <image>?"), 4, "placeholder-in-text"),
            (lambda f: f["QA"]["planning"][0].update(Q="<c1,CAM_UP,1.0,2.0>"), 4, "unknown-camera"),
            (lambda f: f["QA"]["planning"][0].update(A="<c1,CAM_BACK,1>"), 4, "malformed-tag"),
            (lambda f: f["key_object_infos"].pop(C1), 0, "tag-not-in-objects"),
            (lambda f: f["key_object_infos"].update({C1: None}), 0, "bad-box"),
            (lambda f: f["key_object_infos"][C1].pop("2d_bbox"), 0, "bad-box"),
            (lambda f: f["key_object_infos"][C1].update({"2d_bbox": "1"}), 0, "bad-box"),
            (
                lambda f: f["key_object_infos"][C1].update({"2d_bbox": [1, 2, 3, 10**400]}),
                0,
                "bad-box",
            ),
            (
                lambda f: f["key_object_infos"][C1].update({"2d_bbox": [5, 5, 5, 9]}),
                0,
                "box-empty",
            ),
            (
                lambda f: f["key_object_infos"][C1].update({"2d_bbox": [5, 901, 9, 950]}),
                0,
                "box-outside-view",
            ),
            (
                lambda f: f["QA"]["perception"][2].update(A="[(light, red, 5.0, 5.0, 5.0, 9.0)]"),
                2,
                "empty-list",
            ),
        ],
    )
    def test_skipped(
        self,
        edit: Edit,
        number: int,
        reason: str,
        converted: Convert,
        edited: Edited,
    ) -> None:
        results = converted(edited(edit))
        assert skips(results) == [(f"{FRAME} question {number}", reason, 1)]
        kept = [each.source_row() for each in results if isinstance(each, Record)]
        assert (
            kept
            == [f"s1_{f}_{n}" for f in ("f1", "f2") for n in range(6)][:number]
            + [f"s1_{f}_{n}" for f in ("f1", "f2") for n in range(6)][number + 1 :]
        )

    def test_a_tag_without_an_object_is_fine_elsewhere(
        self, tmp_path: Path, records: Records, edited: Edited
    ) -> None:
        raw = edited(lambda f: f["key_object_infos"].pop(C1))
        assert len(records(raw, boxes=False)) == 12

    def test_a_family_of_another_name(
        self, tmp_path: Path, converted: Convert, edited: Edited
    ) -> None:
        raw = edited(lambda f: f["QA"].update(behaviour=f["QA"].pop("behavior")))
        results = converted(raw)
        assert skips(results) == [(f"{FRAME} question behaviour[0]", "unknown-family", 1)]

    def test_missing_families_are_empty(
        self, tmp_path: Path, records: Records, edited: Edited
    ) -> None:
        raw = edited(lambda f: f["QA"].pop("perception"))
        assert [record.source_row() for record in records(raw)[:3]] == [
            "s1_f1_0",
            "s1_f1_1",
            "s1_f1_2",
        ]


class TestBadFrames:
    """All questions of a frame are lost, the next frame is not."""

    @pytest.mark.parametrize(
        ("edit", "reason", "units"),
        [
            (lambda f: f.pop("QA"), "malformed-frame", 1),
            (lambda f: f.update(QA=[]), "malformed-frame", 1),
            (lambda f: f["QA"].update(planning={}), "malformed-frame", 5),
            (lambda f: f.pop("key_object_infos"), "missing-key", 6),
            (lambda f: f.update(key_object_infos=[]), "malformed-frame", 6),
            (lambda f: f.pop("image_paths"), "missing-key", 6),
            (lambda f: f.update(image_paths="x"), "malformed-frame", 6),
            (lambda f: f["image_paths"].pop("CAM_BACK"), "view-missing", 6),
            (lambda f: f["image_paths"].update(CAM_BACK=None), "malformed-frame", 6),
            (lambda f: f["image_paths"].update(CAM_BACK="../nuscenes/x.jpg"), "image-missing", 6),
            (
                lambda f: f["image_paths"].update(CAM_BACK=f"../nuscenes/{'x' * 300}.jpg"),
                "image-missing",
                6,
            ),
            (lambda f: f["image_paths"].update(CAM_BACK="../../x.jpg"), "unsafe-path", 6),
            (lambda f: f["image_paths"].update(CAM_BACK="../x.jpg"), "unsafe-path", 6),
            (lambda f: f["image_paths"].update(CAM_BACK="nuscenes/../../x"), "unsafe-path", 6),
            (lambda f: f["image_paths"].update(CAM_BACK="/etc/passwd"), "unsafe-path", 6),
            (lambda f: f["image_paths"].update(CAM_BACK=""), "unsafe-path", 6),
        ],
    )
    def test_skipped(
        self,
        edit: Edit,
        reason: str,
        units: int,
        converted: Convert,
        edited: Edited,
    ) -> None:
        results = converted(edited(edit))
        assert skips(results) == [(FRAME, reason, units)]
        assert len(results) == 7

    @pytest.mark.parametrize("value", [None, [], 3, {"key_frames": []}, {"frames": {}}])
    def test_a_scene_of_another_shape(
        self,
        tmp_path: Path,
        value: object,
        annotations: Annotations,
        write_raw: WriteRaw,
        converted: Convert,
    ) -> None:
        raw = write_raw(tmp_path, {"s0": value, **annotations("f1")})
        results = converted(raw)
        assert skips(results) == [("v1_1_train_nus.json: scene s0 frame ?", "malformed-frame", 1)]
        assert len(results) == 7

    def test_a_frame_of_another_shape(
        self,
        tmp_path: Path,
        annotations: Annotations,
        write_raw: WriteRaw,
        converted: Convert,
        frame: MakeFrame,
    ) -> None:
        content = annotations("f1", "f2")
        content["s1"]["key_frames"]["f1"] = [frame()]
        assert skips(converted(write_raw(tmp_path, content))) == [(FRAME, "malformed-frame", 6)]

    @pytest.mark.parametrize("token", ["../f1", "a/b", "", ".", "é", "f" * 101])
    def test_a_token_that_is_no_file_name(
        self,
        tmp_path: Path,
        token: str,
        annotations: Annotations,
        write_raw: WriteRaw,
        converted: Convert,
        frame: MakeFrame,
    ) -> None:
        content = annotations("f1")
        content["s1"]["key_frames"] = {token: frame()}
        results = converted(write_raw(tmp_path, content))
        assert [each[1:] for each in skips(results)] == [("unsafe-token", 6)]

    def test_text_that_is_not_utf8(self, raw: Path, converted: Convert) -> None:
        path = raw / "v1_1_train_nus.json"
        path.write_bytes(path.read_bytes().replace(b"Brake.", b"Br\xffke.", 1))
        assert skips(converted(raw)) == [(FRAME, "malformed-frame", 6)]

    def test_an_empty_view(self, raw: Path, converted: Convert) -> None:
        (raw / "nuscenes/samples/CAM_BACK/f1.jpg").write_bytes(b"")
        assert skips(converted(raw)) == [(FRAME, "image-empty", 6)]

    def test_a_view_behind_a_link_that_leads_out(
        self, raw: Path, tmp_path: Path, converted: Convert
    ) -> None:
        path = raw / "nuscenes/samples/CAM_BACK/f1.jpg"
        path.rename(tmp_path / "out.jpg")
        os.symlink(tmp_path / "out.jpg", path)
        assert skips(converted(raw)) == [(FRAME, "unsafe-path", 6)]

    def test_a_view_behind_a_link_to_itself(self, raw: Path, converted: Convert) -> None:
        path = raw / "nuscenes/samples/CAM_BACK/f1.jpg"
        path.unlink()
        path.symlink_to(path.name)
        assert skips(converted(raw)) == [(FRAME, "image-missing", 6)]


def test_memory_does_not_grow_with_parsing(tmp_path: Path, annotations: Annotations) -> None:
    """Indexing needs little more than the mapped file: a parsed one takes several times that."""
    content = annotations(*(f"f{index}" for index in range(4000)))
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content, indent=4))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy\n"
        "from adapt.converters import drivelm\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "parts = drivelm.parts(Path('.'), 'train', annotations=Path(sys.argv[1]))\n"
        "print(len(parts), sum(part.units for part in parts), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    )
    frames, units, grown = map(int, done.stdout.split())
    assert (frames, units) == (4000, 24000)
    assert path.stat().st_size > 15_000_000
    assert grown < path.stat().st_size * 1.5
