"""Packs read from a real mix and plan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.errors import RecordError
from adapt.mix import read_mix
from adapt.models.handle import open_model
from adapt.plan import build_plan
from adapt.recipe import Recipe
from adapt.train.dataset import PackReader, Slot, UnreadableRecord

HANDLE = open_model("tiny")


def make_reader(mix: Path, **options) -> PackReader:
    recipe = Recipe(
        name="r",
        model="tiny",
        mix=mix,
        max_tiles=4,
        max_pack_tiles=8,
        max_pack_tokens=400,
        max_record_tokens=400,
        **options,
    )
    return PackReader(recipe, build_plan(recipe, HANDLE), read_mix(mix), HANDLE)


def read_all(reader: PackReader, *, epoch: int = 0) -> list[torch.Tensor]:
    packs = [reader.read(Slot(epoch, index)).pack for index in range(reader.plan.num_packs)]
    return [tensor for pack in packs for tensor in (pack.input_ids, pack.tiles)]


def test_every_record_of_the_mix_is_in_a_pack(mix: Path) -> None:
    reader = make_reader(mix)
    plan = reader.plan
    supervised = [len(reader.read(Slot(0, index)).pack.targets) for index in range(plan.num_packs)]
    assert supervised == plan.pack_sums("supervised").tolist()
    assert plan.num_records == len(read_mix(mix)) == 30


def test_a_pack_is_the_same_whenever_it_is_read(mix: Path) -> None:
    first, again = read_all(make_reader(mix)), read_all(make_reader(mix))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_the_augmentation_differs_between_epochs(mix: Path) -> None:
    reader = make_reader(mix)
    epochs = [read_all(reader, epoch=epoch) for epoch in (0, 1)]
    same = [torch.equal(*pair) for pair in zip(*epochs, strict=True)]
    assert all(same[::2])  # tokens
    assert not all(same[1::2])  # tiles
    plain = make_reader(mix, jpeg_augmentation=False)
    epochs = [read_all(plain, epoch=epoch) for epoch in (0, 1)]
    assert all(torch.equal(*pair) for pair in zip(*epochs, strict=True))


def test_tiles_are_those_of_the_picture(mix: Path) -> None:
    reader = make_reader(mix, jpeg_augmentation=False)
    plan, stored = reader.plan, read_mix(mix)
    for index in range(plan.num_packs):
        for planned in plan.pack(index):
            tiles = reader.record(planned, epoch=0).tiles
            names = [Path(image).stem for image in stored.record(planned.mix_index).image]
            # A 96x48 picture is two tiles and a thumbnail, here of one strong colour.
            strongest = tiles.mean(axis=(2, 3)).argmax(axis=1).tolist()
            channels = {"red": 0, "green": 1, "blue": 2}
            assert strongest == [channels[name] for name in names for _ in range(3)]


def test_a_damaged_picture_stops_with_its_place(mix: Path) -> None:
    reader = make_reader(mix)
    (mix.parent / "colours" / "images" / "red.png").write_bytes(b"\x89PNG cut off")
    with pytest.raises(UnreadableRecord, match=r"record colours/train/\d+ \(row \d+ .*red\.png.*N"):
        read_all(reader)


def test_a_damaged_picture_is_counted_where_allowed_and_never_replaced(mix: Path) -> None:
    reader = make_reader(mix, max_unreadable=100)
    plan, stored = reader.plan, read_mix(mix)
    (mix.parent / "colours" / "images" / "red.png").unlink()
    expected = {
        index
        for index in range(len(stored))
        if stored.record(index).id.startswith("colours/")
        and any("red" in image for image in stored.record(index).image)
    }
    read = [reader.read(Slot(0, index)) for index in range(plan.num_packs)]
    assert {one.mix_index for part in read for one in part.lost} == expected
    kept = sum(len(part.pack.targets) for part in read)
    planned = {r.mix_index: r.supervised for i in range(plan.num_packs) for r in plan.pack(i)}
    assert kept == sum(count for index, count in planned.items() if index not in expected)


def test_a_picture_of_another_size_is_unreadable(mix: Path) -> None:
    from PIL import Image

    reader = make_reader(mix)
    Image.new("RGB", (96, 96)).save(mix.parent / "colours" / "images" / "red.png")
    with pytest.raises(UnreadableRecord, match="the picture is 96x96 px, its record says 96x48"):
        read_all(reader)


def test_a_record_that_changed_since_the_plan_is_refused(mix: Path) -> None:
    reader = make_reader(mix)
    planned = reader.plan.pack(0)[0]
    with pytest.raises(RecordError, match="was planned with"):
        reader.record(replace(planned, supervised=planned.supervised + 1), epoch=0)
    assert len(reader.record(planned, epoch=0).input_ids) == planned.tokens


def test_an_empty_slot_is_an_empty_pack(mix: Path) -> None:
    read = make_reader(mix).read(Slot(3, None))
    assert read.lost == ()
    assert read.pack.weights.tolist() == []
    assert read.pack.input_ids.tolist() == [[HANDLE.image_token_id] * HANDLE.tokens_per_tile]
    assert np.array_equal(read.pack.tiles, np.zeros((1, 3, 448, 448)))
