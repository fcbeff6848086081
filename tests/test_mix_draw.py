"""The draws of a mix: counts, uniformity, order, as properties of pure functions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.dataset import Dataset
from adapt.errors import UsageError
from adapt.mix import MixOptions, draw_rows
from adapt.mix_draw import Rows, repeat_rows, round_half_up, sample, shuffled
from adapt.mix_options import read_request
from adapt.mix_sources import MixSide, ScannedFile


def test_draws_never_change_with_versions() -> None:
    """The order written down here was made once; a change of it changes everybody's mixes."""
    assert shuffled(10, seed=42, purpose="order").tolist() == [4, 1, 0, 7, 3, 6, 8, 9, 5, 2]
    assert sample(10, 4, seed=42, purpose="take cars").tolist() == [1, 2, 8, 9]


def side_of(name: str, side: str, rows: int) -> MixSide:
    nowhere = Path("nowhere")
    dataset = Dataset(name, nowhere, nowhere, side, "", {})
    return MixSide(dataset, side, (ScannedFile(nowhere, "", rows, np.arange(rows)),))


def draw(sides: list[MixSide], **options: Any) -> Rows:
    return draw_rows(sides, read_request(MixOptions(**options)))


ROWS = st.lists(st.integers(1, 40), min_size=1, max_size=3)
DECIMALS = st.decimals("0.1", "3.9", places=1).map(str)


@settings(max_examples=200)
@given(
    general=ROWS,
    domain=ROWS,
    ratio=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    repeat=DECIMALS,
    share_taken=st.floats(0.01, 1),
    seed=st.integers(0, 10),
)
def test_counts(
    general: list[int],
    domain: list[int],
    ratio: tuple[int, int],
    repeat: str,
    share_taken: float,
    seed: int,
) -> None:
    sides = [side_of(f"g{number}", "general", rows) for number, rows in enumerate(general)]
    sides += [side_of(f"d{number}", "domain", rows) for number, rows in enumerate(domain)]
    taken = max(1, int(general[0] * share_taken))
    options = {
        "ratio": f"{ratio[0]}:{ratio[1]}",
        "take": (f"g0={taken}",),
        "repeat": (f"d0={repeat}",),
        "seed": seed,
    }
    first = len(general)
    extra = round_half_up((Fraction(repeat) % 1) * domain[0])
    domain_rows = int(Fraction(repeat)) * domain[0] + extra + sum(domain[1:])
    pool = taken + sum(general[1:])
    wanted = round_half_up(Fraction(domain_rows * ratio[0], ratio[1]))

    if wanted > pool:
        with pytest.raises(UsageError, match=f"too little general data: {wanted} rows"):
            draw(sides, **options)
    elif not wanted and not domain_rows:
        with pytest.raises(UsageError, match="would be empty"):
            draw(sides, **options)
        return
    rows = draw(sides, allow_repeat=True, **options)
    counts = Counter(rows.source.tolist())
    assert sum(counts[number] for number in range(first)) == wanted
    assert counts[first] == domain_rows - sum(domain[1:])
    for number, size in enumerate(domain[1:], start=first + 1):
        assert sorted(rows.row[rows.source == number]) == list(range(size))
    keys = list(zip(*(column.tolist() for column in rows), strict=True))
    assert len(set(keys)) == len(keys), "a copy of a row twice"
    if wanted <= pool:
        assert not rows.copy[rows.source < first].any()
    g0 = rows.row[rows.source == 0]
    assert len(set(g0.tolist())) <= taken
    spread = Counter(rows.row[rows.source == first].tolist()).values()
    assert max(spread, default=0) <= -(-Fraction(repeat) // 1)
    if Fraction(repeat) >= 1:
        assert len(spread) == domain[0]


@given(pool=st.integers(1, 30), wanted=st.integers(0, 200), seed=st.integers(0, 5))
def test_allow_repeat_repeats_evenly(pool: int, wanted: int, seed: int) -> None:
    sides = [side_of("g", "general", pool), side_of("d", "domain", wanted or 1)]
    rows = draw(sides, ratio="1:1" if wanted else "0:1", allow_repeat=True, seed=seed)
    drawn = rows.row[rows.source == 0]
    times = Counter(drawn.tolist())
    assert len(drawn) == wanted
    assert set(times.values()) <= {wanted // pool, wanted // pool + 1}
    copies = sorted(zip(drawn.tolist(), rows.copy[rows.source == 0].tolist(), strict=True))
    assert copies == sorted((row, copy) for row, number in times.items() for copy in range(number))


def test_general_rows_are_drawn_uniformly_over_the_union() -> None:
    sizes = {"a": 10, "b": 30, "c": 60}
    sides = [side_of(name, "general", rows) for name, rows in sizes.items()]
    sides.append(side_of("d", "domain", 40))
    drawn = np.zeros(100)
    starts = [0, 10, 40]
    for seed in range(500):
        rows = draw(sides, ratio="1:2", seed=seed)
        for number, start in enumerate(starts):
            np.add.at(drawn, start + rows.row[rows.source == number], 1)
    # Each row is expected 100 times of 500; the standard deviation is about 9.
    assert drawn.sum() == 500 * 20
    assert (abs(drawn - 100) < 45).all()
    for start, size in zip(starts, sizes.values(), strict=True):
        assert abs(drawn[start : start + size].mean() - 100) < 10


def test_the_order_mixes_the_sides() -> None:
    rows = draw([side_of("g", "general", 500), side_of("d", "domain", 500)], ratio="1:1")
    first_half = int((rows.source[:500] == 0).sum())
    assert 200 < first_half < 300
    assert rows.row[rows.source == 1].tolist() != sorted(rows.row[rows.source == 1].tolist())


@pytest.mark.parametrize(
    ("times", "expected"),
    [("2", {0: 2, 1: 2, 2: 2}), ("0.5", 2), ("1.5", 5), ("0.1", 0), ("2.34", 7)],
)
def test_repeat_rows(times: str, expected: dict[int, int] | int) -> None:
    index, copy = repeat_rows(3, Fraction(times), seed=1, purpose="repeat x")
    if isinstance(expected, dict):
        assert Counter(index.tolist()) == expected
    else:
        assert len(index) == expected
    assert len(set(zip(index.tolist(), copy.tolist(), strict=True))) == len(index)


@pytest.mark.parametrize(
    ("domain_rows", "ratio", "wanted"),
    [
        (531, "1:4", 133),
        (2, "1:4", 1),
        (1, "1:4", 0),
        (6, "1:4", 2),
        (10, "0.5:1", 5),
        (3, "2:1", 6),
    ],
)
def test_halves_go_up(domain_rows: int, ratio: str, wanted: int) -> None:
    sides = [side_of("g", "general", 500), side_of("d", "domain", domain_rows)]
    assert int((draw(sides, ratio=ratio).source == 0).sum()) == wanted
