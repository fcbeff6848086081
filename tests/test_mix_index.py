"""Reading a mix back: what changed is refused, records are found wherever they stand."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import msgspec
import numpy as np
import pytest
from datasets_to_mix import line_of, make_workspace

from adapt.errors import RecordError, SourceError
from adapt.mix import MixOptions, read_mix, run_mix


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path)


def test_read_mix_refuses_what_changed(workspace: Path) -> None:
    run_mix(MixOptions(ratio="1:4"))
    folder = Path("data/mix")
    index = (folder / "mix.parquet").read_bytes()
    text = (folder / "mix.json").read_text()
    records = Path("data/general/chart/train.jsonl")
    stored = records.read_bytes()

    records.write_bytes(stored + b"\n")
    with pytest.raises(RecordError, match="has changed since the mix was made"):
        read_mix(folder)
    records.write_bytes(stored.replace(b"How many", b"How much"))
    mix = read_mix(folder)
    with pytest.raises(RecordError, match="has changed since the mix was made"):
        mix.verify()
    records.write_bytes(stored)
    read_mix(folder).verify()

    records.unlink()
    with pytest.raises(RecordError, match="which is gone"):
        read_mix(folder)
    records.write_bytes(stored)

    (folder / "mix.parquet").write_bytes(index[:-1])
    with pytest.raises(RecordError, match=r"does not belong to mix.json; run adapt mix again"):
        read_mix(folder)
    (folder / "mix.parquet").unlink()
    with pytest.raises(RecordError, match=r"is missing beside mix.json; run adapt mix again"):
        read_mix(folder)
    (folder / "mix.parquet").write_bytes(index)

    (folder / "mix.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(RecordError, match="format is 2, this version reads 1"):
        read_mix(folder)
    (folder / "mix.json").write_text(text[:100])
    with pytest.raises(RecordError, match="not a mix"):
        read_mix(folder)
    with pytest.raises(SourceError, match="holds no mix"):
        read_mix(workspace / "data" / "domain")


def test_long_lines_carriage_returns_and_a_missing_last_newline(tmp_path: Path) -> None:
    texts = ["short", "x" * 4000, "y" * 100_000, "z" * 4096, "last " * 5000]
    lines = [line_of("cars", number, text) for number, text in enumerate(texts)]
    encoded = [msgspec.json.encode(line) for line in lines]
    path = tmp_path / "cars" / "train.jsonl"
    path.parent.mkdir()
    path.write_bytes(encoded[0] + b"\r\n" + b"\n".join(encoded[1:]))
    mix = run_mix(MixOptions(ratio="0:1", domain=(path.parent,), out=tmp_path / "mix"))
    read = {int(mix.columns["row"][index]): mix.read_line(index) for index in range(5)}
    assert [read[number] for number in range(5)] == encoded
    assert sorted((mix.record(i) for i in range(5)), key=lambda line: line.id) == lines


def test_a_mix_goes_to_other_processes_without_its_open_files(workspace: Path) -> None:
    mix = run_mix(MixOptions(ratio="1:4"))
    first = mix.record(0)
    before = len(os.listdir("/proc/self/fd"))
    copy = pickle.loads(pickle.dumps(mix))
    assert len(os.listdir("/proc/self/fd")) == before
    assert copy.record(0) == first
    mix.close()
    assert mix.record(0) == first
    mix.close()
    copy.close()


def test_a_line_that_is_gone_names_its_place(workspace: Path) -> None:
    mix = run_mix(MixOptions(ratio="0:1"))
    last = int(np.argmax(mix.columns["row"]))
    path = Path("data/domain/drivelm/train.jsonl")
    os.truncate(path, int(mix.columns["offset"][last]))
    with pytest.raises(RecordError, match=r"drivelm/train.jsonl:531: the file ends before it"):
        mix.record(last)
    os.truncate(path, int(mix.columns["offset"][last]) + 20)
    path.write_bytes(path.read_bytes()[: int(mix.columns["offset"][last])] + b"{}\n")
    with pytest.raises(RecordError, match=r"drivelm/train.jsonl:531: not a record"):
        mix.record(last)
