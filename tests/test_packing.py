"""Packing: every record once, limits kept, few packs, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.packing import Limits, least_packs, pack_records

RECORDS = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), max_size=120)
LIMITS = st.tuples(st.integers(100, 400), st.integers(20, 60)).map(lambda pair: Limits(*pair))


def split(records):
    return [tokens for tokens, _ in records], [tiles for _, tiles in records]


@given(RECORDS, LIMITS, st.integers(0, 3))
def test_every_record_once_within_the_limits(records, limits, seed):
    tokens, tiles = split(records)
    packing = pack_records(tokens, tiles, limits, seed=seed)
    assert sorted(set(packing.packs.tolist())) == list(range(packing.num_packs))
    for pack in range(packing.num_packs):
        members = np.flatnonzero(packing.packs == pack)
        assert sorted(packing.slots[members].tolist()) == list(range(len(members)))
        assert sum(tokens[member] for member in members) <= limits.tokens
        assert sum(tiles[member] for member in members) <= limits.tiles
    assert least_packs(tokens, tiles, limits) <= packing.num_packs <= len(records)


@given(RECORDS, LIMITS)
def test_the_same_seed_gives_the_same_packs(records, limits):
    tokens, tiles = split(records)
    first, second = (pack_records(tokens, tiles, limits, seed=7) for _ in range(2))
    assert first.packs.tolist() == second.packs.tolist()
    assert first.slots.tolist() == second.slots.tolist()


@given(RECORDS, st.integers(20, 60))
def test_groups_never_share_a_pack(records, switch):
    tokens, tiles = split(records)
    groups = np.asarray(tokens, dtype=np.int64) > switch
    packing = pack_records(tokens, tiles, Limits(200, 40), seed=1, groups=groups)
    for pack in range(packing.num_packs):
        assert len(set(groups[packing.packs == pack].tolist())) == 1


def test_packs_are_pinned():
    """A change of the packs breaks the resuming of runs: it must be meant."""
    rng = np.random.Generator(np.random.PCG64(0))
    tokens, tiles = rng.integers(50, 400, 12), rng.integers(0, 14, 12)
    packing = pack_records(tokens, tiles, Limits(1000, 30), seed=42)
    assert packing.packs.tolist() == [2, 0, 2, 1, 0, 3, 1, 1, 0, 0, 2, 1]
    assert packing.slots.tolist() == [2, 2, 0, 3, 0, 0, 1, 0, 3, 1, 1, 2]


def test_another_seed_gives_other_packs():
    tokens, tiles = [100] * 40, [2] * 40
    packs = [
        pack_records(tokens, tiles, Limits(500, 48), seed=seed).packs.tolist() for seed in (1, 2)
    ]
    assert packs[0] != packs[1]


def test_no_records():
    packing = pack_records([], [], Limits(10, 10), seed=0)
    assert (packing.num_packs, packing.packs.tolist(), packing.slots.tolist()) == (0, [], [])
    assert least_packs([], [], Limits(10, 10)) == 0


def test_a_record_over_a_limit_is_refused():
    with pytest.raises(
        ValueError, match=r"record 1 of \[11, 0\] is over Limits\(tokens=10, tiles=5\)"
    ):
        pack_records([10, 11], [0, 0], Limits(10, 5), seed=0)
    with pytest.raises(ValueError, match=r"record 0 of \[1, 6\]"):
        pack_records([1], [6], Limits(10, 5), seed=0)


@pytest.mark.parametrize(
    ("sizes", "limit", "least"),
    [
        ([50] * 4, 100, 2),
        ([51] * 4, 100, 4),
        ([34] * 6, 100, 3),
        # 13 tiles of 48: three a pack, though the sum would fit in fewer.
        ([13] * 12, 48, 4),
        # Four halves and eight quarters fill four packs, of which none has room left.
        ([50] * 4 + [25] * 8, 100, 4),
        ([100, 1], 100, 2),
        ([1] * 7, 100, 1),
    ],
)
def test_least_packs_of_known_cases(sizes, limit, least):
    assert least_packs(sizes, [0] * len(sizes), Limits(limit, 1)) == least
    assert least_packs([1] * len(sizes), sizes, Limits(10**6, limit)) == least


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(12, 20))
def test_least_packs_is_never_above_the_best_packing(sizes, limit):
    assert least_packs(sizes, [0] * len(sizes), Limits(limit, 1)) <= fewest(sizes, limit)


def fewest(sizes, limit):
    """The smallest count of packs, by trying every assignment."""
    best = len(sizes)

    def place(index, packs):
        nonlocal best
        if len(packs) >= best:
            return
        if index == len(sizes):
            best = len(packs)
            return
        for pack in range(len(packs)):
            if packs[pack] + sizes[index] <= limit:
                grown = [*packs]
                grown[pack] += sizes[index]
                place(index + 1, grown)
        place(index + 1, [*packs, sizes[index]])

    place(0, [])
    return best


@pytest.mark.parametrize(
    ("tokens", "tiles"),
    [
        pytest.param(lambda rng: 128 * 13 + rng.integers(60, 300, 3000), lambda _: 13, id="mosaic"),
        pytest.param(lambda rng: rng.integers(100, 8000, 3000), lambda _: 0, id="text"),
        pytest.param(
            lambda rng: rng.integers(300, 600, 3000),
            lambda rng: rng.integers(1, 3, 3000),
            id="small",
        ),
        pytest.param(
            lambda rng: rng.integers(2000, 5000, 3000),
            lambda rng: rng.choice([7, 8, 10, 13], 3000),
            id="mixed",
        ),
    ],
)
def test_packs_are_nearly_as_few_as_can_be(tokens, tiles):
    rng = np.random.Generator(np.random.PCG64(3))
    tokens = tokens(rng)
    tiles = np.broadcast_to(tiles(rng), len(tokens))
    limits = Limits(16384, 48)
    packing = pack_records(tokens, tiles, limits, seed=0)
    assert packing.num_packs <= 1.03 * least_packs(tokens, tiles, limits)


def test_packs_stay_mixed_when_nothing_is_gained_by_sorting():
    """Records of one kind are not gathered in packs of their own."""
    kinds = np.arange(2000) % 2
    packing = pack_records(np.where(kinds, 480, 520), [1] * 2000, Limits(16384, 48), seed=0)
    shares = np.bincount(packing.packs, kinds) / np.bincount(packing.packs)
    assert np.count_nonzero((shares > 0.1) & (shares < 0.9)) > 0.95 * packing.num_packs
