"""Opening dataset folders, with and without dataset.json."""

import json
from pathlib import Path

import pytest

from adapt.dataset import SplitFile, open_dataset
from adapt.errors import RecordError, SourceError


def manifest(**changes: object) -> str:
    file = {"path": "train.jsonl", "records": 1, "bytes": 3, "sha256": "0" * 64}
    return json.dumps(
        {
            "format": 1,
            "name": "shapes",
            "role": "domain",
            "domain": "forms",
            "root": "../raw",
            "splits": {"train": {"files": [file]}},
            **changes,
        }
    )


def test_a_folder_made_by_hand_is_its_own_root(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "val", "skipped"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.root, dataset.role) == (tmp_path.name, tmp_path, "")
    assert dataset.splits == {
        "train": [
            SplitFile(tmp_path / "train-00000-of-00002.jsonl"),
            SplitFile(tmp_path / "train-00001-of-00002.jsonl"),
        ],
        "val": [SplitFile(tmp_path / "val.jsonl")],
    }


def test_dataset_json_says_name_root_and_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "stray.jsonl").write_text("{}\n")
    (tmp_path / "dataset.json").write_text(manifest())
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.role, dataset.domain) == ("shapes", "domain", "forms")
    assert dataset.root == tmp_path / "../raw"
    assert dataset.splits == {"train": [SplitFile(tmp_path / "train.jsonl", "0" * 64, 1)]}


def test_a_single_file_is_a_dataset_of_one_split(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    assert open_dataset(path).splits == {"train": [SplitFile(path)]}
    (tmp_path / "dataset.json").write_text(manifest())
    assert open_dataset(path).splits == {"train": [SplitFile(path, "0" * 64, 1)]}


def test_nothing_there_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such dataset; adapt convert makes one"):
        open_dataset(tmp_path / "none")
    with pytest.raises(SourceError, match=r"holds no records; expected SPLIT.jsonl"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", SourceError, "not valid JSON"),
        ("[]", RecordError, r"Expected `object`, got `array`"),
        (manifest(name=3), RecordError, r"Expected `str`, got `int` - at `\$.name`"),
        (
            manifest(splits={"train": {"files": [{"path": "../x", "sha256": "", "records": 1}]}}),
            RecordError,
            r"names the records file '\.\./x', expected one in this folder",
        ),
        (manifest(format=2), RecordError, "format is 2, this version reads 1"),
        (manifest(splits=[]), RecordError, r"Expected `object`, got `array` - at `\$.splits`"),
    ],
)
def test_a_damaged_dataset_json_is_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path)
