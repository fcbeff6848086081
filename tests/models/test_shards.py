"""Reading and writing safetensors one tensor at a time."""

import errno
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from adapt.errors import CheckpointError, EnvironmentFault, SourceError
from adapt.models import shards
from adapt.models.shards import DTYPES, INDEX, TensorSpec, open_checkpoint, write_checkpoint

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def specs_of(tensors):
    specs = [TensorSpec(n, NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()]
    return sorted(specs, key=lambda spec: spec.place)


def write(folder, tensors, **options):
    specs = specs_of(tensors)
    return write_checkpoint(
        folder, specs, ((spec.name, tensors[spec.name]) for spec in specs), **options
    )


@st.composite
def tensor_sets(draw):
    names = draw(st.lists(st.text("ab.é", min_size=1, max_size=4), min_size=1, unique=True))
    tensors = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        tensors[name] = torch.rand(shape).mul(9).to(dtype)
    return tensors


@settings(deadline=None, max_examples=50)
@given(tensors=tensor_sets())
def test_one_file_is_what_safetensors_itself_writes(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert write(folder, tensors) == ["model.safetensors"]
    written = (folder / "model.safetensors").read_bytes()
    assert written == save(tensors, metadata={"format": "pt"})


@settings(deadline=None, max_examples=50)
@given(tensors=tensor_sets(), limit=st.integers(1, 60))
def test_shards_hold_every_tensor_once_and_stay_small(tensors, limit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    files = write(folder, tensors, max_shard_bytes=limit)
    loaded = [load_file(folder / name) for name in files]
    assert sorted(name for shard in loaded for name in shard) == sorted(tensors)
    for shard in loaded:
        size = sum(tensor.nbytes for tensor in shard.values())
        assert size <= limit or sum(tensor.nbytes > 0 for tensor in shard.values()) == 1
    checkpoint = open_checkpoint(folder)
    assert checkpoint.specs == {spec.name: spec for spec in specs_of(tensors)}
    for name, tensor in tensors.items():
        assert checkpoint.read(name).equal(tensor)
        assert checkpoint.files[name].name in files


def test_index_lists_every_tensor_with_its_file(tmp_path):
    tensors = {"b": torch.zeros(4), "a": torch.ones(4), "c": torch.ones(1)}
    files = write(tmp_path, tensors, max_shard_bytes=20)
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert json.loads((tmp_path / INDEX).read_text()) == {
        "metadata": {"total_size": 36},
        "weight_map": {"a": files[0], "b": files[1], "c": files[1]},
    }


def test_numbered_shards_need_no_index(tmp_path):
    write(tmp_path, {"a": torch.ones(4), "b": torch.zeros(4)}, max_shard_bytes=16)
    (tmp_path / INDEX).unlink()
    assert sorted(open_checkpoint(tmp_path).specs) == ["a", "b"]


def test_other_safetensors_files_beside_the_weights_are_passed_over(tmp_path):
    write(tmp_path, {"a": torch.ones(4)})
    save_file({"x": torch.ones(1)}, tmp_path / "inputs.safetensors")
    assert list(open_checkpoint(tmp_path).specs) == ["a"]


def test_main_dtype_is_that_of_most_bytes(tmp_path):
    write(tmp_path, {"a": torch.ones(9, dtype=torch.bfloat16), "b": torch.ones(2)})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.main_dtype == "BF16"
    assert checkpoint.num_bytes == 26


def test_a_tensor_is_read_under_its_new_name(tmp_path):
    write(tmp_path, {"a": torch.ones(2), "b": torch.zeros(2)})
    renamed = open_checkpoint(tmp_path).renamed(lambda name: f"x.{name}").without("x.b")
    assert list(renamed.specs) == ["x.a"]
    assert renamed.specs["x.a"] == TensorSpec("x.a", "F32", (2,))
    assert renamed.read("x.a").tolist() == [1.0, 1.0]


def test_rows_come_in_blocks(tmp_path):
    tensor = torch.arange(10.0).reshape(5, 2)
    write(tmp_path, {"a": tensor})
    blocks = list(open_checkpoint(tmp_path).row_blocks("a", 2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert torch.cat(blocks).equal(tensor)


def two_shards(folder):
    write(folder, {"a": torch.ones(4), "b": torch.zeros(4)}, max_shard_bytes=16)


def damage_missing_shard(folder):
    two_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def damage_missing_shard_and_index(folder):
    damage_missing_shard(folder)
    (folder / INDEX).unlink()


def damage_other_index(folder):
    two_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["b"] = index["weight_map"]["a"]
    index["weight_map"]["c"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def damage_index_leaves_folder(folder):
    two_shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))


def damage_index_without_map(folder):
    two_shards(folder)
    (folder / INDEX).write_text("{}")


def damage_same_tensor_twice(folder):
    for number in (1, 2):
        save_file({"a": torch.ones(1)}, folder / f"model-0000{number}-of-00002.safetensors")


def damage_two_sets(folder):
    save_file({"a": torch.ones(1)}, folder / "model-00001-of-00001.safetensors")
    save_file({"a": torch.ones(1)}, folder / "ema-00001-of-00001.safetensors")


def damage_stale_index(folder):
    two_shards(folder)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")


def damage_cut_off(folder):
    write(folder, {"a": torch.ones(400)})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def damage_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 9)


def damage_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def damage_quantised(folder):
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_shard, r"1 of 2 shards are missing: model-00002-of-00002.safetensors"),
        (damage_missing_shard_and_index, r"1 of 2 shards are missing: model-00002-of-00002"),
        (damage_other_index, r"index.json: disagrees with its shards on 2 tensors \(b, c\)"),
        (damage_index_leaves_folder, r"names files outside its folder"),
        (damage_index_without_map, r"index.json: has no weight_map"),
        (damage_same_tensor_twice, r"-00002-of-00002.safetensors: holds a, which .*00001-of-00002"),
        (damage_two_sets, r"several sets of shards and no model.safetensors.index.json"),
        (damage_stale_index, r"model.safetensors and model.safetensors.index.json; .* stale"),
        (damage_cut_off, r"model.safetensors: not a readable safetensors file .*fetch it again"),
        (damage_pointer, r"it is a Git LFS pointer: run git lfs pull"),
        (damage_pickle, r"pytorch_model.bin: is a pickle, .* run any code; expected safetensors"),
        (damage_quantised, r"a has dtype F8_E4M3, expected one of .* quantised"),
        (lambda folder: None, r"has no \*.safetensors files; expected model.safetensors"),
        (lambda folder: folder.rmdir(), r"no such folder, expected a checkpoint"),
    ],
)
def test_damaged_checkpoints(tmp_path, damage, message):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_index_that_is_not_json(tmp_path):
    two_shards(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(SourceError, match=r"index.json:1:\d+: not valid JSON"):
        open_checkpoint(tmp_path)


def test_full_disk(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match=r"model.safetensors: the disk is full"):
        write(tmp_path, {"a": torch.ones(4)})
    assert os.fsync is fail
