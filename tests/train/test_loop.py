"""What a rank runs in a step, and what it may lose."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from adapt.errors import RecordError
from adapt.recipe import Recipe
from adapt.train.dataset import Lost, Slot
from adapt.train.loop import Sharing, allowed_losses, pack_seed, pack_totals
from adapt.train.loss import num_chunks
from adapt.train.schedule import Schedule


class PlanOfFour:
    """Packs of 2, 1, 1 and 1 records."""

    num_packs = 4

    def __init__(self) -> None:
        self._columns = {
            "pack": [0, 0, 1, 2, 3],
            "supervised": [4, 9, 1, 0, 16],
            "tokens": [10, 20, 30, 40, 50],
            "tiles": [1, 0, 2, 3, 0],
        }

    def column(self, name: str) -> np.ndarray:
        return np.array(self._columns[name])

    def pack_sums(self, name: str) -> np.ndarray:
        return np.bincount(self._columns["pack"], self._columns[name]).astype(np.int64)


@pytest.mark.parametrize(
    ("reduction", "weight"),
    [("token", [13, 1, 0, 16]), ("sample", [2, 1, 0, 1]), ("square", [5, 1, 0, 4])],
)
def test_totals_of_packs(reduction: str, weight: list[float]) -> None:
    totals = pack_totals(PlanOfFour(), reduction)
    assert totals.weight.tolist() == pytest.approx(weight)
    assert totals.supervised.tolist() == [13, 1, 0, 16]
    assert totals.tokens.tolist() == [30, 30, 40, 50]
    assert totals.tiles.tolist() == [1, 2, 3, 0]


def sharing(num_packs: int, *, rank: int, ranks: int, accumulation: int) -> Sharing:
    schedule = Schedule(
        num_packs=num_packs,
        packs_per_step=ranks * accumulation,
        total_steps=2 * -(-num_packs // (ranks * accumulation)),
        warmup_steps=0,
        peak=1.0,
        floor=0.0,
        decay=True,
    )

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(num_packs)

    supervised = np.arange(num_packs) * 3
    return Sharing(
        schedule=schedule,
        order=order,
        supervised=supervised,
        rank=rank,
        ranks=ranks,
        chunk_tokens=10,
    )


def test_a_step_of_two_ranks() -> None:
    first = sharing(3, rank=0, ranks=2, accumulation=2).step(0)
    second = sharing(3, rank=1, ranks=2, accumulation=2).step(0)
    order = np.random.default_rng(0).permutation(3).tolist()
    assert first.packs.tolist() == second.packs.tolist() == order
    assert first.slots == (Slot(0, order[0]), Slot(0, order[2]))
    # The last step of an epoch lacks a pack: the second rank runs an empty one.
    assert second.slots == (Slot(0, order[1]), Slot(0, None))


@given(
    num_packs=st.integers(1, 40),
    ranks=st.integers(1, 5),
    accumulation=st.integers(1, 4),
)
def test_ranks_share_every_pack_and_agree_on_chunks(
    num_packs: int, ranks: int, accumulation: int
) -> None:
    everyone = [
        sharing(num_packs, rank=rank, ranks=ranks, accumulation=accumulation)
        for rank in range(ranks)
    ]
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(everyone[0].schedule.total_steps):
        shares = [one.step(step) for one in everyone]
        assert len({share.chunks for share in shares}) == 1
        for share in shares:
            assert len(share.slots) == accumulation
            for slot, chunks in zip(share.slots, share.chunks, strict=True):
                if slot.pack is not None:
                    seen[slot.epoch].append(slot.pack)
                    assert num_chunks(slot.pack * 3, 10) <= chunks
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(num_packs))


def test_random_numbers_belong_to_the_pack() -> None:
    seeds = [pack_seed(1, Slot(epoch, pack)) for epoch in (0, 1) for pack in (0, 1, None)]
    assert len(set(seeds)) == 6
    assert pack_seed(1, Slot(1, 0)) == seeds[3]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_unreadable_records_are_allowed_up_to_the_limit() -> None:
    recipe = Recipe(name="r", max_unreadable=2)
    newly = [Lost(5, "a/b/5", "images/5.png: truncated")]
    assert allowed_losses(frozenset({1, 5}), newly, recipe) == {1, 5}
    with pytest.raises(
        RecordError,
        match=r"3 records cannot be read, max_unreadable is 2; .*a/b/5 \(row 5 .*truncated",
    ):
        allowed_losses(frozenset({1, 2, 5}), newly, recipe)
