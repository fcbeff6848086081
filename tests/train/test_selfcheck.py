"""The proof that packed equals separate, and that it would find what is not."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapt.errors import EnvironmentFault
from adapt.models.handle import open_model
from adapt.plan import PlannedRecord
from adapt.quiet import quiet_training
from adapt.train.collate import Filler, LoadedRecord
from adapt.train.engine import Engine, build_engine
from adapt.train.packed_model import PackedModel, normalise
from adapt.train.place import Place, joined
from adapt.train.selfcheck import check_packing, choose_records

SCRIPT = Path(__file__).with_name("engine_cases.py")
spec = importlib.util.spec_from_file_location("engine_cases", SCRIPT)
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)

HANDLE = open_model("tiny")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    recipe = cases.Recipe(
        name="r", model="tiny", dtype=request.param, deepspeed="zero2", drop_path=0.5
    )
    with joined(Place()) as device, quiet_training():
        engine = build_engine(HANDLE, recipe, device)
        yield engine
        engine.deepspeed.destroy()


def filler() -> Filler:
    return Filler(HANDLE.image_token_id, HANDLE.tokens_per_tile, HANDLE.tile_px)


def two_records(*, tiles: int) -> list[LoadedRecord]:
    return [
        cases.load_record(HANDLE, 0, "What is this?", "A red car on the left.", tiles),
        cases.load_record(HANDLE, 1, "How many are there?", "Four", tiles),
    ]


@pytest.mark.parametrize("tiles", [0, 2])
def test_packed_equals_separate(engine: Engine, tiles: int) -> None:
    assert check_packing(engine, two_records(tiles=tiles), filler()) < 0.02
    # What is off for the check is on again for training.
    assert engine.packed.training
    assert engine.packed.core.model.vision_tower.training


def with_a_mask(model: PackedModel, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    input_ids, position_ids, tiles = inputs
    return model.core.model(
        input_ids=input_ids,
        position_ids=position_ids,
        pixel_values=normalise(tiles, model.core.dtype),
        attention_mask=torch.ones_like(input_ids),
        use_cache=False,
    ).last_hidden_state[0]


def without_restart(model: PackedModel, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    input_ids, _, tiles = inputs
    return model.core.model(
        input_ids=input_ids,
        position_ids=torch.arange(input_ids.shape[1])[None],
        pixel_values=normalise(tiles, model.core.dtype),
        use_cache=False,
    ).last_hidden_state[0]


@pytest.mark.parametrize("wrong", [with_a_mask, without_restart])
def test_records_that_see_each_other_are_found_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, wrong
) -> None:
    monkeypatch.setattr(PackedModel, "hidden_states", lambda self, *inputs: wrong(self, inputs))
    with pytest.raises(EnvironmentFault, match="mixes packed records"):
        check_packing(engine, two_records(tiles=1), filler())


def test_logits_that_are_no_numbers_fail(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedModel.hidden_states
    monkeypatch.setattr(
        PackedModel, "hidden_states", lambda self, *inputs: right(self, *inputs) * float("nan")
    )
    with pytest.raises(EnvironmentFault, match="differ"):
        check_packing(engine, two_records(tiles=1), filler())


class PlanOf:
    def __init__(self, *packs: list[tuple[int, int, int, int]]) -> None:
        self._packs = packs
        self.num_packs = len(packs)

    def pack(self, index: int) -> list[PlannedRecord]:
        return [PlannedRecord(*record) for record in self._packs[index]]


def chosen(plan: PlanOf, switch: int | None = None) -> list[int]:
    return [record.mix_index for record in choose_records(plan, switch)]


def test_the_shortest_records_with_pictures_are_chosen() -> None:
    plan = PlanOf([(0, 90, 2, 5), (1, 20, 0, 5)], [(2, 80, 1, 5), (3, 10, 1, 0), (4, 95, 1, 1)])
    assert chosen(plan) == [2, 0]
    assert chosen(PlanOf([(0, 90, 0, 5)], [(1, 20, 0, 5)])) == [1, 0]
    assert chosen(PlanOf([(0, 90, 0, 5)])) == []


def test_records_of_one_side_of_the_rope_switch_are_chosen() -> None:
    plan = PlanOf([(0, 50, 1, 5)], [(1, 120, 1, 5), (2, 110, 1, 5)])
    assert chosen(plan) == [0, 2]
    assert chosen(plan, switch=100) == [2, 1]
    assert chosen(plan, switch=115) == [0, 2]
    assert chosen(PlanOf([(0, 50, 1, 5), (1, 120, 1, 5)]), switch=100) == []
