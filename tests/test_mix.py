"""`adapt mix`: counts, draws, bytes, and reading the mix back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from datasets_to_mix import line_of, make, make_workspace, write

from adapt.cli import run
from adapt.errors import RecordError, SourceError, UsageError
from adapt.mix import MixOptions, read_mix, run_mix
from adapt.problems import schema_problems


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path)


def ids_of(folder: Path = Path("data/mix")) -> list[str]:
    mix = read_mix(folder)
    return [mix.record(index).id for index in range(len(mix))]


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# --- The command --------------------------------------------------------------------------------


def test_the_paper_s_ratio(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mix", "--ratio", "1:4"]) == 0
    mix = read_mix(Path("data/mix"))
    used = {source.name: source.rows_used for source in mix.manifest.sources}
    assert used["drivelm"] == 531
    assert used["llava"] + used["chart"] == 133
    assert capsys.readouterr().out.splitlines() == [
        "general 133 : domain 531 = 1:3.99 (asked 1:4)",
        f"  general side: 133 rows, 20.0% of the mix (chart {used['chart']} of 50, "
        f"llava {used['llava']} of 150)",
        "  domain side: 531 rows, 80.0% of the mix (drivelm 531 of 531)",
        "664 rows in data/mix/mix.parquet, seed 42",
    ]
    counts = Counter(ids_of())
    assert counts.total() == len(mix) == len(counts) == 664
    assert {f"drivelm/train/{number}" for number in range(531)} <= set(counts)


def source_of(name: str, role: str, rows: int, **more: Any) -> dict[str, Any]:
    """Return what mix.json says of a dataset in its default place."""
    folder = f"../{role}/{name}"
    head = {"name": name, "role": role, "domain": "", "folder": folder, "root": folder}
    return head | {"take": None, "repeat": None, "rows_available": rows} | more


def test_mix_json(workspace: Path) -> None:
    mix = run_mix(MixOptions(ratio="1:1", take=("drivelm=20",), repeat=("chart=1.5",)))
    path = workspace / "data" / "mix" / "mix.json"
    value = json.loads(path.read_bytes())
    assert schema_problems(value, "mix") == []
    index = (path.parent / "mix.parquet").read_bytes()
    file = workspace / "data" / "general" / "chart" / "train.jsonl"
    used = [source.pop("rows_used") for source in value["sources"]]
    distinct = [source.pop("rows_distinct") for source in value["sources"]]
    assert sum(used[:2]) == used[2] == distinct[2] == 20
    assert [source.pop("files")[0]["records"] for source in value["sources"][1:]] == [150, 531]
    chart = {
        "path": "../general/chart/train.jsonl",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "records": 50,
        "bytes": file.stat().st_size,
    }
    assert value == {
        "format": 1,
        "seed": 42,
        "ratio": "1:1",
        "fraction_of_general": None,
        "allow_repeat": False,
        "rows": 40,
        "reached": "1:1",
        "shares": {"general": {"rows": 20, "share": 0.5}, "domain": {"rows": 20, "share": 0.5}},
        "sources": [
            source_of("chart", "general", 50, repeat="1.5", files=[chart]),
            source_of("llava", "general", 150),
            source_of("drivelm", "domain", 531, take=20),
        ],
        "index": {
            "path": "mix.parquet",
            "sha256": hashlib.sha256(index).hexdigest(),
            "bytes": len(index),
        },
    }
    assert msgspec.to_builtins(mix.manifest) == json.loads(path.read_bytes())


def test_the_index_has_its_columns_and_points_at_lines(workspace: Path) -> None:
    mix = run_mix(MixOptions(ratio="1:4"))
    table = pq.read_table("data/mix/mix.parquet")
    assert {name: str(table.schema.field(name).type) for name in table.schema.names} == {
        "source": "int16",
        "file": "int16",
        "row": "int32",
        "offset": "int64",
        "copy": "int16",
    }
    lines = {
        source.name: (mix.folder / source.files[0].path).read_bytes().splitlines()
        for source in mix.manifest.sources
    }
    for index, row in enumerate(table["row"].to_pylist()):
        assert mix.read_line(index) == lines[mix.source(index).name][row]
        assert mix.place(index).endswith(f"train.jsonl:{row + 1}")
        assert mix.image_path(index, f"{row}.jpg") == mix.file_path(index).parent / f"{row}.jpg"


def test_ratio_zero_takes_no_general_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data" / "domain" / "cars", 7)
    mix = run_mix(MixOptions(ratio="0:1"))
    assert [source.name for source in mix.manifest.sources] == ["cars"]
    assert (len(mix), mix.manifest.reached) == (7, "0:1")


def test_fraction_of_general(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mix", "--fraction-of-general", "0.2"]) == 0
    assert capsys.readouterr().out.startswith(
        "general 40 : domain 531 = 1:13.28 (asked for 0.2 of the general side)\n"
    )
    assert read_mix(Path("data/mix")).manifest.fraction_of_general == "0.2"


def test_shards_and_single_files(tmp_path: Path) -> None:
    for shard, rows in enumerate((3, 5, 1)):
        name = f"train-{shard:05d}-of-00003.jsonl"
        write(
            tmp_path / "cars" / name,
            [line_of("cars", 10 * shard + number) for number in range(rows)],
        )
    make(tmp_path / "talk", 4, "dev.jsonl")
    options = MixOptions(
        ratio="1:3",
        domain=(tmp_path / "cars",),
        general=(tmp_path / "talk" / "dev.jsonl",),
        out=tmp_path / "mix",
    )
    mix = run_mix(options)
    assert [len(source.files) for source in mix.manifest.sources] == [1, 3]
    numbers = {int(mix.record(i).source.row) for i in range(12) if mix.source(i).name == "cars"}
    assert numbers == {0, 1, 2, 10, 11, 12, 13, 14, 20}
    assert len(mix) == 12


def test_a_mix_moves_with_its_workspace(workspace: Path, tmp_path_factory: Any) -> None:
    run_mix(MixOptions(ratio="1:4"))
    before = ids_of()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    (workspace / "data").rename(elsewhere)
    assert ids_of(elsewhere / "mix") == before


# --- Same inputs, same bytes --------------------------------------------------------------------


def test_same_inputs_and_seed_give_the_same_bytes(workspace: Path) -> None:
    run_mix(MixOptions(ratio="1:4", out=workspace / "a"))
    run_mix(MixOptions(ratio="1:4", out=workspace / "b"))
    run_mix(MixOptions(ratio="1:4", out=workspace / "c", seed=7))
    assert tree(workspace / "a") == tree(workspace / "b")
    assert set(tree(workspace / "a")) == {"mix.json", "mix.parquet"}
    assert set(tree(workspace / "a").values()).isdisjoint(tree(workspace / "c").values())


def test_two_processes_at_once(workspace: Path) -> None:
    run_mix(MixOptions(ratio="1:4", out=workspace / "alone"))
    command = [sys.executable, "-m", "adapt", "mix", "--ratio", "1:4", "--out", "both"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert tree(workspace / "both") == tree(workspace / "alone")


def test_a_source_s_sample_does_not_depend_on_the_others(workspace: Path) -> None:
    few = run_mix(MixOptions(ratio="0:1", take=("drivelm=30",)))
    alone = {few.record(index).id for index in range(len(few))}
    make(workspace / "data" / "domain" / "another", 40)
    more = run_mix(MixOptions(ratio="0:1", take=("drivelm=30",)))
    assert alone == {i for i in ids_of(more.folder) if i.startswith("drivelm")}


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either --ratio general:domain"),
        ({"ratio": "1:4", "fraction_of_general": 0.2}, "give either --ratio general:domain"),
        ({"ratio": "1:0"}, "--ratio 1:0: expected general:domain, two numbers"),
        ({"ratio": "4"}, "--ratio 4: expected"),
        ({"ratio": "1:2:3"}, "--ratio 1:2:3: expected"),
        ({"ratio": "-1:2"}, "--ratio -1:2: expected"),
        ({"ratio": "a:b"}, "--ratio a:b: expected"),
        ({"ratio": "1/2:1"}, "--ratio 1/2:1: expected"),
        ({"ratio": "1e3:1"}, "--ratio 1e3:1: expected"),
        ({"fraction_of_general": 1.5}, "--fraction-of-general 1.5: expected a share from 0 to 1"),
        ({"fraction_of_general": float("nan")}, "--fraction-of-general nan: expected a share"),
        ({"ratio": "1:4", "take": ("drivelm",)}, "--take drivelm: expected NAME=NUMBER"),
        ({"ratio": "1:4", "take": ("drivelm=0",)}, "--take drivelm=0: expected a whole number"),
        ({"ratio": "1:4", "take": ("drivelm=1.5",)}, "--take drivelm=1.5: expected a whole"),
        ({"ratio": "1:4", "take": ("drivelm=532",)}, "--take drivelm=532: there are 531 rows"),
        ({"ratio": "1:4", "take": ("drivelm=1", "drivelm=2")}, "--take drivelm: is given twice"),
        (
            {"ratio": "1:4", "take": ("drivlm=1",)},
            r"--take drivlm: no such dataset \(did you mean ",
        ),
        (
            {"ratio": "1:4", "repeat": ("lava=2",)},
            r"--repeat lava: no such dataset \(did you mean ",
        ),
        ({"ratio": "1:4", "repeat": ("llava=0",)}, "--repeat llava=0: expected a number above 0"),
        ({"ratio": "1:4", "repeat": ("llava=nan",)}, "--repeat llava=nan: expected a number"),
        (
            {"ratio": "1:4", "repeat": ("llava=" + "1" * 5000,)},
            "expected a number above 0, at most",
        ),
        ({"ratio": "1:4", "take": ("llava=" + "1" * 5000,)}, "expected a whole number of rows"),
        ({"ratio": "1" * 5000 + ":1"}, "expected general:domain, two numbers"),
        (
            {"ratio": "999999999999999:1", "allow_repeat": True},
            r"asked 999999999999999:1: general rows would be repeated 2654999999999998 times, at "
            r"most 32767 are possible; add general data",
        ),
        (
            {"ratio": "1:2"},
            r"too little general data: 266 rows are wanted for 531 domain rows \(asked 1:2\), 200 "
            r"are there \(chart 50, llava 150\); add datasets with --general, take fewer domain "
            r"rows with --take, or --allow-repeat",
        ),
        (
            {"ratio": "1:2", "take": ("llava=10",)},
            r"266 rows are wanted .*, 60 are there \(chart 50, llava 10\)",
        ),
    ],
)
def test_wrong_options(workspace: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_mix(MixOptions(**options))
    assert not (workspace / "data" / "mix").exists()


def test_missing_defaults_say_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError,
        match=r"^data/domain: no such folder; expected data/domain/NAME/train.jsonl, as adapt "
        r"convert makes it \(such as adapt convert drivelm\); or name datasets with --domain$",
    ):
        run_mix(MixOptions(ratio="1:4"))
    make(tmp_path / "data" / "domain" / "cars", 3)
    # What a conversion that lost too much leaves behind is no dataset.
    write(tmp_path / "data" / "general" / "llava" / "skipped.jsonl", [])
    with pytest.raises(SourceError, match=r"^data/general: holds no dataset; .*convert llava"):
        run_mix(MixOptions(ratio="1:4"))
    assert run(["mix", "--ratio", "1:4"]) == 2


def test_a_dataset_without_a_train_split(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Path("data/general/test_only"), 3, "test.jsonl")
    run_mix(MixOptions(ratio="1:4"))
    assert capsys.readouterr().out.startswith(
        "data/general/test_only: left out, no train split (has test)\ngeneral 133"
    )
    with pytest.raises(SourceError, match=r"test_only: holds no train split \(has test\)"):
        run_mix(MixOptions(ratio="1:4", general=(Path("data/general/test_only"),)))


@pytest.mark.parametrize(
    "words",
    [
        ["--domain", "a", "b", "--ratio", "1:2", "--general", "c", "d"],
        ["--domain=a", "b", "--general", "c", "--general", "d", "--ratio", "1:2"],
        ["--ratio", "1:2", "--general", "c", "d", "--domain", "a", "--domain", "b"],
    ],
)
def test_several_paths_after_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        make(Path(name), 4)
    assert run(["mix", *words]) == 0
    sources = read_mix(Path("data/mix")).manifest.sources
    assert [(source.role, source.name) for source in sources] == [
        ("general", "c"),
        ("general", "d"),
        ("domain", "a"),
        ("domain", "b"),
    ]


def test_a_path_without_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mix", "--ratio", "1:2", "a"]) == 2
    assert "unexpected extra argument(s) (a)" in capsys.readouterr().err


def test_two_datasets_of_one_converter_are_called_as_their_folders(tmp_path: Path) -> None:
    for name, rows in (("old", 3), ("new", 4)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        found = [{"question": f"{name} {index}?", "answer": "So."} for index in range(rows)]
        (tmp_path / "raw" / name / "rows.json").write_text(json.dumps(found))
        command = ["convert", "llava", str(tmp_path / "raw" / name), "--workers", "1", "--out"]
        assert run([*command, str(tmp_path / name)]) == 0
    domain = make(tmp_path / "signs", 5)
    mix = run_mix(
        MixOptions(
            ratio="1:1",
            general=(tmp_path / "old", tmp_path / "new"),
            domain=(domain,),
            take=("new=2",),
            out=tmp_path / "mix",
        )
    )
    used = {source.name: source.rows_used for source in mix.manifest.sources}
    assert used == {"old": 3, "new": 2, "signs": 5}


def test_two_datasets_of_one_name(workspace: Path) -> None:
    make(Path("data/domain/llava"), 3)
    with pytest.raises(UsageError, match="is called llava, and so is data/general/llava"):
        run_mix(MixOptions(ratio="1:4"))


def test_a_file_given_twice(workspace: Path) -> None:
    Path("data/domain/again").symlink_to(Path("drivelm"))
    again, first = Path("data/domain/again"), Path("data/domain/drivelm")
    with pytest.raises(UsageError, match="is given twice, in "):
        run_mix(MixOptions(ratio="0:1", domain=(first, again / "train.jsonl")))


@pytest.mark.parametrize("writer", ["compact", "spaced", "reordered"])
def test_a_file_without_answers_is_refused_by_name(workspace: Path, writer: str) -> None:
    lines = [line_of("cars", number) for number in range(5)]
    lines.append(line_of("cars", 5, ""))
    values = [msgspec.to_builtins(line) for line in lines]
    if writer == "reordered":
        for value in values:
            value["conversations"] = [
                {"value": turn["value"], "from": turn["from"]} for turn in value["conversations"]
            ]
    separators = (",", ":") if writer == "compact" else (" , ", " :\t")
    text = "".join(json.dumps(value, separators=separators) + "\n" for value in values)
    path = Path("data/domain/cars/train.jsonl")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(RecordError, match=r"^data/domain/cars/train.jsonl:6: a record without an"):
        run_mix(MixOptions(ratio="1:4"))


def test_an_empty_value_inside_a_text_is_no_missing_answer(tmp_path: Path) -> None:
    folder = tmp_path / "cars"
    write(folder / "train.jsonl", [line_of("cars", 0, 'it is "value":""}],"task"')])
    assert len(run_mix(MixOptions(ratio="0:1", domain=(folder,), out=tmp_path / "mix"))) == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"id": "a"}\n', "train.jsonl:1: not a record (Object missing required field"),
        (b"[1, 2]\n", "train.jsonl:1: not a record (Expected `object`"),
        (b"\xff\xfe{\n", "train.jsonl:1: not a record ("),
        (None, "train.jsonl:3: not a record ("),
        (b"", "train.jsonl: the file is empty"),
        (b'{"x":' + b"[" * 99999 + b"]" * 99999 + b"}\n", "train.jsonl:1: not a record ("),
    ],
)
def test_what_is_no_records_file(tmp_path: Path, content: bytes | None, place: str) -> None:
    folder = make(tmp_path / "cars", 2)
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" if content is None else content)
    with pytest.raises((RecordError, SourceError)) as caught:
        run_mix(MixOptions(ratio="0:1", domain=(folder,), out=tmp_path / "mix"))
    assert place in str(caught.value)
    assert not (tmp_path / "mix").exists()


def test_a_file_that_dataset_json_does_not_describe(tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", 2)
    converter = {"name": "cars", "version": "1"}
    file = {"path": "train.jsonl", "records": 2, "bytes": 1, "sha256": "0" * 64}
    manifest = {"format": 1, "name": "cars", "converter": converter, "role": "domain", "root": "."}
    manifest["splits"] = {"train": {"files": [file]}}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=r"is not the file that dataset\.json describes"):
        run_mix(MixOptions(ratio="0:1", domain=(folder,), out=tmp_path / "mix"))


def test_a_later_line_that_is_nested_too_deeply(tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", 2)
    deep = b'{"x":' + b"[" * 99999 + b"]" * 99999 + b',"conversations":[{"value":"x"}]}\n'
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes() + deep)
    with pytest.raises(RecordError, match=r"train\.jsonl:3: not a record \(maximum recursion"):
        run_mix(MixOptions(ratio="0:1", domain=(folder,), out=tmp_path / "mix"))


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    folder = make(tmp_path / "cars", 2).rename(tmp_path / os.fsdecode(b"cars\xff"))
    with pytest.raises(UsageError, match=r"^b'cars.xff': a name that is no UTF-8; rename it"):
        run_mix(MixOptions(ratio="0:1", domain=(folder,), out=tmp_path / "mix"))


def test_an_output_that_cannot_be_written(workspace: Path) -> None:
    (workspace / "taken").write_text("a file")
    assert run(["mix", "--ratio", "1:4", "--out", "taken"]) == 2
    assert run(["mix", "--ratio", "1:4", "--out", "taken/mix"]) == 4
