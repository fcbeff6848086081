"""Put general and domain data together as an index: mix.parquet and mix.json; nothing is copied.

    general side   --take--> --repeat--> drawn without replacement: domain * G / D rows --+
                                                                                          +--> mix
    domain side    --take--> --repeat--> kept whole --------------------------------------+

The rows stand in a random order. The ratio is general:domain, the paper's order. The same inputs
and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adapt.errors import UsageError
from adapt.mix_draw import (
    MOST_COPIES,
    Rows,
    draw_with_repeats,
    join,
    repeat_rows,
    sample,
    shuffled,
)
from adapt.mix_index import Mix, read_mix
from adapt.mix_options import MixOptions, Request, read_request
from adapt.mix_sources import SIDES, MixSide, find_datasets, scan_sides, tell_apart
from adapt.mix_write import describe, write_mix

__all__ = ["Mix", "MixOptions", "read_mix", "run_mix"]


def run_mix(options: MixOptions) -> Mix:
    """Make a mix, print both of its sides, and return it.

    Raises:
        UsageError: Options that contradict each other, unknown names, too little general data.
        SourceError: A dataset is missing.
        RecordError: A records file cannot be trained on, or is not what dataset.json says.
    """
    request = read_request(options)
    datasets = {"domain": find_datasets("domain", options.domain)}
    if request.goal.general or options.general:
        datasets["general"] = find_datasets("general", options.general)
    datasets = tell_apart(datasets)
    request.require_names(dataset.name for found in datasets.values() for _, dataset in found)
    sides = scan_sides(datasets)
    mix = write_mix(sides, request, draw_rows(sides, request))
    for line in describe(mix.manifest, request):
        print(line)
    return mix


def draw_rows(sides: Sequence[MixSide], request: Request) -> Rows:
    """Return the rows of the mix in training order.

    Raises:
        UsageError: There is too little general data, or too little of a dataset for --take.
    """
    parts: dict[str, list[Rows]] = {side: [] for side in SIDES}
    for number, side in enumerate(sides):
        parts[side.side].append(_rows_of(number, side, request))
    domain, pool = join(parts["domain"]), join(parts["general"])
    wanted = request.goal.rows(len(domain.row), len(pool.row))
    if wanted > len(pool.row) and not (request.allow_repeat and len(pool.row)):
        there = [
            f"{side.dataset.name} {len(rows.row)}"
            for side, rows in zip(
                [side for side in sides if side.side == "general"], parts["general"], strict=True
            )
        ]
        raise _too_little(request, wanted, len(domain.row), len(pool.row), there)
    if wanted > len(pool.row) * MOST_COPIES:
        # Not drawn first: the rows might not fit into memory.
        raise _too_often(request, -(-wanted // len(pool.row)))
    times = [_times(side, request) for side in sides]
    copies = np.array([-(-number.numerator // number.denominator) for number in times], np.int64)
    rows = join([domain, draw_with_repeats(pool, wanted, copies=copies, seed=request.seed)])
    if not len(rows.row):
        raise UsageError("the mix would be empty; repeat its datasets more often")
    if (most := int(rows.copy.max()) + 1) > MOST_COPIES:
        raise _too_often(request, most)
    return rows.take(shuffled(len(rows.row), seed=request.seed, purpose="order"))


def _too_often(request: Request, times: int) -> UsageError:
    return UsageError(
        f"{request.goal.words()}: general rows would be repeated {times} times, at most "
        f"{MOST_COPIES} are possible; add general data"
    )


def _times(side: MixSide, request: Request) -> Fraction:
    return request.repeat.get(side.dataset.name, Fraction(1))


def _rows_of(number: int, side: MixSide, request: Request) -> Rows:
    """Return a dataset's rows after --take and --repeat."""
    name = side.dataset.name
    count = request.take.get(name, side.rows)
    if count > side.rows:
        raise UsageError(
            f"--take {name}={count}: there are {side.rows} rows; --repeat {name}=K makes more"
        )
    taken = sample(side.rows, count, seed=request.seed, purpose=f"take {name}")
    index, copy = repeat_rows(
        count, _times(side, request), seed=request.seed, purpose=f"repeat {name}"
    )
    return Rows(np.full(len(index), number, np.int16), taken[index], copy)


def _too_little(
    request: Request, wanted: int, domain_rows: int, available: int, there: list[str]
) -> UsageError:
    return UsageError(
        f"too little general data: {wanted} rows are wanted for {domain_rows} domain rows "
        f"({request.goal.words()}), {available} are there ({', '.join(there) or 'no dataset'}); "
        f"add datasets with --general, take fewer domain rows with --take, or --allow-repeat"
    )
