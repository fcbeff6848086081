"""Plans: what is counted is what the model will get, and packs are the same everywhere."""

import dataclasses
import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adapt.cli import run
from adapt.errors import RecipeError, RecordError, SourceError
from adapt.mix import MixOptions, read_mix, run_mix
from adapt.models.handle import ModelHandle, open_model
from adapt.plan import PlannedRecord, arrange, build_plan, load_plan, run_plan
from adapt.plan_report import domain_notice, report_plan
from adapt.plan_sizes import RecordSizes
from adapt.recipe import Recipe
from adapt.tiling import record_tiles

SIZES = [(640, 480), (448, 448), (2688, 896), (300, 900)]


def line(dataset, row, *, sizes=((448, 448),), question="What is this?", answer="A car.", **fields):
    images = "<image>\n" * len(sizes)
    return {
        "id": f"{dataset}/train/{row}",
        "image": [f"images/{row}-{index}.jpg" for index in range(len(sizes))],
        "width_list": [width for width, _ in sizes],
        "height_list": [height for _, height in sizes],
        "conversations": [
            {"from": "human", "value": f"{images}{question}"},
            {"from": "gpt", "value": answer},
        ],
        "task": "vqa",
        "source": {"dataset": dataset, "split": "train", "row": str(row)},
        "extra": "",
    } | fields


def write_dataset(folder, lines, *, role, domain=""):
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(one) + "\n" for one in lines).encode()
    (folder / "train.jsonl").write_bytes(data)
    file = {
        "path": "train.jsonl",
        "records": len(lines),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    manifest = {
        "format": 1,
        "name": folder.name,
        "root": ".",
        "role": role,
        "domain": domain,
        "splits": {"train": {"files": [file]}},
    }
    (folder / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def handle():
    return open_model("tiny")


@pytest.fixture
def make_mix(tmp_path):
    def make(domain, general=(), *, name="signs", **options):
        write_dataset(tmp_path / name, domain, role="domain", domain="driving")
        if general:
            write_dataset(tmp_path / "chat", general, role="general")
        run_mix(
            MixOptions(
                **{
                    "ratio": f"{len(general)}:{len(domain)}",
                    "fraction_of_general": None,
                    "domain": (tmp_path / name,),
                    "general": (tmp_path / "chat",) if general else (),
                    "take": (),
                    "repeat": (),
                    "allow_repeat": False,
                    "seed": 1,
                    "out": tmp_path / "mix",
                }
                | options
            )
        )
        return tmp_path / "mix"

    return make


def some_lines(dataset, count, seed=0):
    rng = random.Random(seed)
    words = ["car", "left", "light", "why", "stops", "two", "green"]
    return [
        line(
            dataset,
            row,
            sizes=[rng.choice(SIZES) for _ in range(rng.choice([0, 1, 1, 2]))],
            question=" ".join(rng.choices(words, k=rng.randint(1, 40))) + "?",
            answer=" ".join(rng.choices(words, k=rng.randint(1, 20))) + ".",
        )
        for row in range(count)
    ]


def recipe_for(mix, **fields):
    return Recipe(name="test", model="tiny", mix=mix, **fields)


def test_counts_are_the_models_own(make_mix, handle):
    folder = make_mix(some_lines("signs", 30), some_lines("chat", 20, seed=1))
    recipe = recipe_for(folder, max_tiles=6)
    plan = build_plan(recipe, handle)
    mix = read_mix(folder)
    assert sorted(plan.columns["mix_index"].tolist()) == list(range(50))
    planned = [one for pack in range(plan.num_packs) for one in plan.pack(pack)]
    for one in planned:
        record = mix.record(one.mix_index)
        tiles = record_tiles(record.width_list, record.height_list, record.task, max_tiles=6)
        sample = handle.encode(record.conversations, tiles)
        supervised = sum(label != -100 for label in sample.labels)
        assert one == PlannedRecord(one.mix_index, len(sample.input_ids), sum(tiles), supervised)


def test_packs_keep_the_limits(make_mix, handle):
    folder = make_mix(some_lines("signs", 40))
    recipe = recipe_for(folder, max_pack_tokens=900, max_pack_tiles=30)
    plan = build_plan(recipe, handle)
    assert plan.num_packs > 3
    packs = [plan.pack(index) for index in range(plan.num_packs)]
    assert sum(map(len, packs)) == plan.num_records == 40
    for index, pack in enumerate(packs):
        tokens = sum(one.tokens for one in pack)
        tiles = sum(one.tiles for one in pack)
        assert tokens <= 900
        assert tiles <= 30
        assert (plan.pack_sums("tokens")[index], plan.pack_sums("tiles")[index]) == (tokens, tiles)
    with pytest.raises(IndexError):
        plan.pack(plan.num_packs)


def test_video_frames_take_a_tile_each(make_mix, handle):
    frames = line("signs", 0, sizes=[(1280, 720)] * 5, task="video")
    plan = build_plan(recipe_for(make_mix([frames])), handle)
    assert [one.tiles for one in plan.pack(0)] == [5]


def test_the_same_mix_gives_the_same_plan_wherever_it_lies(make_mix, handle, tmp_path):
    folder = make_mix(some_lines("signs", 30))
    plan = build_plan(recipe_for(folder), handle)
    assert build_plan(recipe_for(folder), handle).hash == plan.hash
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    moved = recipe_for(tmp_path.parent / f"{tmp_path.name}-moved" / "mix")
    assert build_plan(dataclasses.replace(moved, name="other"), handle).hash == plan.hash


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 43},
        {"max_pack_tokens": 900, "max_pack_tiles": 40},
        {"max_tiles": 6},
        {"thumbnail": False},
        {"min_tiles": 2},
    ],
)
def test_what_decides_the_data_is_in_the_hash(make_mix, handle, fields):
    folder = make_mix(some_lines("signs", 30))
    plain, other = (build_plan(recipe_for(folder, **one), handle) for one in ({}, fields))
    assert plain.hash != other.hash
    # What only decides how it is learned is not.
    same = build_plan(recipe_for(folder, learning_rate=1e-3, gradient_accumulation=3), handle)
    assert same.hash == plain.hash


def test_another_mix_is_another_plan(make_mix, handle):
    lines = some_lines("signs", 10)
    before = build_plan(recipe_for(make_mix(lines)), handle).hash
    # The same sizes in tokens and tiles.
    lines[3]["extra"] = "{}"
    assert build_plan(recipe_for(make_mix(lines)), handle).hash != before


def test_copies_of_a_record_are_planned_each(make_mix, handle):
    folder = make_mix(some_lines("signs", 6), repeat=("signs=3",))
    plan = build_plan(recipe_for(folder), handle)
    assert plan.num_records == 18
    sizes = Counter(zip(*(plan.column(name).tolist() for name in ("tokens", "tiles")), strict=True))
    assert all(count % 3 == 0 for count in sizes.values())


def test_records_over_a_limit_are_refused_all_at_once(make_mix, handle):
    lines = some_lines("signs", 5)
    lines[2] = line("signs", 2, question="far " * 300)
    lines[4] = line("signs", 4, sizes=[(448, 448)] * 9)
    recipe = recipe_for(make_mix(lines), max_record_tokens=500, max_pack_tiles=8, max_tiles=1)
    with pytest.raises(RecordError) as caught:
        build_plan(recipe, handle)
    summary, *listed = str(caught.value).splitlines()
    assert summary == (
        "records over a limit: 2; raise the limit, or leave them out and count them: "
        "--set over_length=skip"
    )
    assert [one.partition("signs/train/")[2] for one in listed] == [
        f"2: {len(encode(handle, lines[2], 1))} tokens and 1 tiles, over max_record_tokens 500",
        f"4: {len(encode(handle, lines[4], 9))} tokens and 9 tiles, over max_pack_tiles 8",
    ]
    assert "train.jsonl:3: " in listed[0]


def encode(handle, one, images):
    from adapt.records import Message

    turns = [Message(turn["from"], turn["value"]) for turn in one["conversations"]]
    return handle.encode(turns, [1] * images).input_ids


def test_records_over_a_limit_may_be_left_out_and_are_counted(make_mix, handle):
    lines = some_lines("signs", 5)
    lines[2] = line("signs", 2, question="far " * 300)
    lines[4] = line("signs", 4, question="far " * 400)
    folder = make_mix(lines)
    plan = build_plan(recipe_for(folder, max_record_tokens=500, over_length="skip"), handle)
    assert (plan.num_records, plan.num_left_out) == (3, 2)
    left = plan.columns["pack"] == -1
    rows = read_mix(folder).columns["row"][plan.columns["mix_index"][left]]
    assert sorted(rows.tolist()) == [2, 4]
    assert plan.about["left_out"] == {"over max_record_tokens 500": 2}
    assert plan.columns["slot"][left].tolist() == [-1, -1]


def test_a_pack_is_a_limit_of_records_too(make_mix, handle):
    folder = make_mix([line("signs", 0, question="far " * 300)])
    with pytest.raises(RecordError, match="over max_pack_tokens 200"):
        build_plan(recipe_for(folder, max_pack_tokens=200), handle)


class ShortModel(ModelHandle):
    """A model with a dynamic rope of 100 positions."""

    max_positions = 100


def test_a_dynamic_rope_refuses_longer_records(make_mix, handle):
    short = ShortModel(**{f.name: getattr(handle, f.name) for f in dataclasses.fields(handle)})
    folder = make_mix([line("signs", 0, question="far " * 300)])
    with pytest.raises(RecordError, match="tokens and 1 tiles, over the 100 positions of tiny"):
        build_plan(recipe_for(folder), short)


def sizes_of(tokens, tiles):
    tokens, tiles = np.asarray(tokens), np.asarray(tiles)
    return RecordSizes(tokens, tiles, tokens // 2, np.ones(len(tokens), dtype=bool))


ABOUT = {"format": 1, "seed": 5, "limits": {"pack_tokens": 1000, "pack_tiles": 10}, "left_out": {}}


def test_a_long_rope_keeps_long_and_short_records_apart():
    rng = random.Random(0)
    tokens = [100, 101, *(rng.randint(20, 300) for _ in range(200))]
    plan = arrange(sizes_of(tokens, [1] * 202), ABOUT, rope_switch=100)
    kinds = [{one.tokens > 100 for one in plan.pack(pack)} for pack in range(plan.num_packs)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds
    assert {False} in kinds
    together = arrange(sizes_of(tokens, [1] * 202), ABOUT, rope_switch=None)
    assert together.num_packs <= plan.num_packs


def test_epochs_go_through_all_packs_in_their_own_order():
    plan = arrange(sizes_of([600] * 50, [1] * 50), ABOUT, rope_switch=None)
    assert plan.num_packs == 50
    orders = [plan.order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == plan.order(0).tolist()
    assert orders[0][:8] == [42, 15, 34, 37, 19, 12, 26, 46]


@pytest.mark.parametrize(
    ("world_size", "accumulation", "steps"),
    [(1, 1, 50), (1, 8, 7), (8, 1, 7), (7, 8, 1), (64, 8, 1)],
)
def test_steps(world_size, accumulation, steps):
    plan = arrange(sizes_of([600] * 50, [1] * 50), ABOUT, rope_switch=None)
    assert plan.steps_per_epoch(world_size=world_size, accumulation=accumulation) == steps


def test_a_plan_of_nothing():
    plan = arrange(sizes_of([], []), ABOUT, rope_switch=None)
    assert (plan.num_packs, plan.num_records, plan.order(0).tolist()) == (0, 0, [])
    assert plan.steps_per_epoch(world_size=2, accumulation=1) == 0
    assert plan.pack_sums("tokens").tolist() == []


def test_a_saved_plan_reads_back(make_mix, handle, tmp_path):
    plan = build_plan(recipe_for(make_mix(some_lines("signs", 30))), handle)
    path = plan.save(tmp_path / "plan")
    assert path == tmp_path / "plan" / "plan.parquet"
    again = load_plan(tmp_path / "plan")
    assert again.hash == plan.hash
    assert again.about == plan.about
    assert [again.pack(index) for index in range(plan.num_packs)] == [
        plan.pack(index) for index in range(plan.num_packs)
    ]
    before = path.read_bytes()
    plan.save(tmp_path / "plan")
    assert path.read_bytes() == before


def test_the_files_columns(make_mix, handle, tmp_path):
    import pyarrow.parquet as pq

    plan = build_plan(recipe_for(make_mix(some_lines("signs", 5))), handle)
    schema = pq.read_schema(plan.save(tmp_path))
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "pack": "int32",
        "slot": "int16",
        "mix_index": "int64",
        "tokens": "int32",
        "tiles": "int16",
        "supervised": "int32",
    }
    assert json.loads(schema.metadata[b"adapt.plan"])["made_for"] == {
        "recipe": "test",
        "model": "tiny",
    }


def test_damaged_plans(make_mix, handle, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(SourceError, match=r"plan\.parquet: no such plan; adapt plan RECIPE --out"):
        load_plan(tmp_path)
    path = build_plan(recipe_for(make_mix(some_lines("signs", 5))), handle).save(tmp_path)
    table = pq.read_table(path)
    changed = table.set_column(3, "tokens", pa.array([9] * len(table), pa.int32()))
    pq.write_table(changed, path)
    with pytest.raises(SourceError, match="not what its hash says"):
        load_plan(tmp_path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(SourceError, match="not a plan of adapt"):
        load_plan(tmp_path)
    pq.write_table(table.drop_columns(["tiles"]), path)
    with pytest.raises(SourceError, match="not a plan of adapt"):
        load_plan(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="not a plan of adapt"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width_list": [0]}, "picture of 0x448 px: both sides must be positive"),
        ({"width_list": []}, "1 images, 0 widths, 1 heights; make them match"),
        ({"image": [], "width_list": [], "height_list": []}, "1 <image> and 0 pictures"),
    ],
)
def test_records_that_cannot_be_trained_on(make_mix, handle, fields, message):
    folder = make_mix([line("signs", 0), line("signs", 1) | fields])
    with pytest.raises(RecordError) as caught:
        build_plan(recipe_for(folder), handle)
    summary, problem = str(caught.value).splitlines()
    assert summary == ("records that cannot be trained on: 1; mend or remove them and mix again")
    assert "train.jsonl:2: signs/train/1: " in problem
    assert message in problem


def test_an_answer_of_nothing_teaches_nothing(make_mix, handle):
    strict = dataclasses.replace(
        handle, template=msgspec.structs.replace(handle.template, strip_turns=True)
    )
    folder = make_mix([line("signs", 0), line("signs", 1, answer=" ")])
    with pytest.raises(RecordError, match=r"train\.jsonl:2: no answer, so nothing to learn"):
        build_plan(recipe_for(folder), strict)


def test_many_problems_are_cut_short(make_mix, handle):
    lines = [line("signs", row) | {"width_list": [0]} for row in range(130)]
    with pytest.raises(RecordError) as caught:
        build_plan(recipe_for(make_mix(lines)), handle)
    found = str(caught.value).splitlines()
    assert found[0].startswith("records that cannot be trained on: 130; ")
    assert (len(found), found[-1]) == (102, "  and 30 more")


def test_a_mix_of_another_domain_is_noted(make_mix, tmp_path):
    mix = read_mix(make_mix(some_lines("signs", 3), some_lines("chat", 3)))
    medical = Recipe(name="medical", domains=("medical",))
    notice = domain_notice(medical, mix)
    assert notice is not None
    assert notice.startswith(
        "note: the mix holds driving, recipe medical is for medical; recipes for driving: bddx, "
    )
    assert notice.endswith("Going on with medical.")
    assert domain_notice(Recipe(name="a", domains=("driving",)), mix) is None
    assert domain_notice(Recipe(name="a"), mix) is None


def test_the_report(make_mix, handle):
    folder = make_mix([line("signs", row, sizes=[(2688, 896)]) for row in range(60)])
    recipe = recipe_for(folder, gradient_accumulation=2)
    plan = build_plan(recipe, handle)
    tokens = plan.pack(0)[0].tokens
    assert list(report_plan(plan, recipe)) == [
        "records     60 in packs, 0 left out",
        f"tokens      {60 * tokens:,}, {60 * 4:,} of them learned ({4 / tokens:.1%})",
        "tiles       780",
        "length      records, by tokens",
        *(f"  {21 * bin_ + 1:>7,} to {21 * bin_ + 21:>7,}          0" for bin_ in range(11)),
        "      232 to     252         60  ########################################",
        "packs       20 of at most 16,384 tokens and 48 tiles; no packing needs fewer than 20",
        f"fill        {60 * tokens / 20 / 16384:.1%} of the tokens, 81.2% of the tiles",
        "            tiles are what fills a pack: --set max_pack_tiles=96 could do with 9 packs "
        f"({60 * tokens / 9 / 16384:.1%}), for more memory",
        f"hash        {plan.hash}",
        "",
        "steps an epoch, 2 packs for each GPU and step",
        "  GPUs            1         2         4         8        16        32",
        "  steps          10         5         3         2         1         1",
    ]


def test_the_report_of_texts_alone(make_mix, handle):
    folder = make_mix([line("signs", row, sizes=[]) for row in range(60)])
    plan = build_plan(recipe_for(folder), handle)
    lines = list(report_plan(plan, recipe_for(folder)))
    assert "tiles       0" in lines
    assert (
        "packs       1 of at most 16,384 tokens and 48 tiles; no packing needs fewer than 1"
        in lines
    )


def test_the_command(make_mix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_mix(some_lines("signs", 20), some_lines("chat", 5))
    arguments = ["plan", "recipes/medical.yaml", "--set", "model=tiny", "--set", "mix=mix"]
    assert run([*arguments, "--gpus", "2"]) == 0
    output = capsys.readouterr()
    assert "using the shipped recipe medical" in output.err
    assert "note: the mix holds driving, recipe medical is for medical" in output.out
    assert "records     25 in packs, 0 left out" in output.out
    assert "GiB on each of 2 GPUs for full, zero1, bf16; an estimate" in output.out
    assert "an epoch on 2 GPUs" in output.out
    assert "written to runs/medical/plan/plan.parquet" in output.out
    assert load_plan(Path("runs/medical/plan")).num_records == 25
    assert run([*arguments, "--out", "elsewhere"]) == 0
    assert load_plan(Path("elsewhere")).hash == load_plan(Path("runs/medical/plan")).hash


def test_the_command_without_a_mix(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "medical", "--set", "model=tiny"]) == 2
    assert "data/mix: holds no mix" in capsys.readouterr().err
    with pytest.raises(RecipeError):
        run_plan(Path("medicl"), ())
