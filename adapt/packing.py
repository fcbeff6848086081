"""Packing: records into packs within two limits, tokens and tiles, with little room left.

    record   tokens  tiles          limits: 16384 tokens, 48 tiles
    A          3500     13          pack 0: A B D     10900 tokens, 40 tiles
    B          3600     13          pack 1: C E ...
    C          2100      7

This is bin packing in two dimensions. Three ways, each good at another kind of data, are tried in
turn until one comes within 2 % of `least_packs`, which no packing can be below; the first leaves
the packs best mixed, so another must save 1 % to be preferred. No record is cut, none is left out.
The result depends on the sizes, the limits and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.mix_draw import shuffled

Integers = npt.NDArray[np.int64]

_WINDOW = 4096
_POOL = 32
_UNITS = 256
_GOOD_ENOUGH = 1.02
_WORTH_IT = 0.99
_DUAL_FUNCTIONS = 32


class Limits(NamedTuple):
    """What a pack may hold."""

    tokens: int
    tiles: int


class Packing(NamedTuple):
    """Which pack each record is in.

    Attributes:
        packs: [records] int64, pack of each record, 0 to the count of packs - 1.
        slots: [records] int64, place of each record in its pack, from 0.
    """

    packs: Integers
    slots: Integers

    @property
    def num_packs(self) -> int:
        """How many packs there are."""
        return int(self.packs.max()) + 1 if len(self.packs) else 0


def pack_records(
    tokens: npt.ArrayLike,
    tiles: npt.ArrayLike,
    limits: Limits,
    *,
    seed: int,
    groups: npt.ArrayLike | None = None,
) -> Packing:
    """Put every record into one pack.

    Args:
        tokens: [records] tokens of each record, at least 1.
        tiles: [records] tiles of each record, 0 for text.
        limits: Of a pack.
        seed: Of the order that the records are looked at in.
        groups: [records] records of different groups never share a pack.

    Raises:
        ValueError: A record is over a limit on its own.
    """
    sizes = np.stack([np.asarray(tokens, np.int64), np.asarray(tiles, np.int64)], axis=1)
    for record in np.flatnonzero((sizes > limits).any(axis=1)):
        raise ValueError(f"record {record} of {sizes[record].tolist()} is over {limits}")
    order = shuffled(len(sizes), seed=seed, purpose="packs")
    kinds = np.zeros(len(sizes)) if groups is None else np.asarray(groups)
    packs = np.empty(len(sizes), dtype=np.int64)
    count = 0
    for kind in np.unique(kinds):
        members = order[kinds[order] == kind]
        packs[members] = _fewest_packs(sizes[members], limits) + count
        count = int(packs[members].max()) + 1
    return Packing(packs, _slots(packs, order))


def least_packs(tokens: npt.ArrayLike, tiles: npt.ArrayLike, limits: Limits) -> int:
    """Return a count of packs that no packing can be below.

    It is the best of a family of bounds for each limit: the sum of all sizes over the limit, and
    for k = 1, 2, ... the count of records above a (k+1)-th of the limit, of which k share a pack,
    with larger ones counting several times (the dual feasible functions of Fekete and Schepers).
    """
    least = 0
    for size, limit in ((np.asarray(tokens, np.int64), limits.tokens), (tiles, limits.tiles)):
        distinct, counts = np.unique(np.asarray(size, np.int64), return_counts=True)
        least = max(least, -(-int((distinct * counts).sum()) // limit))
        for k in range(1, _DUAL_FUNCTIONS):
            whole, rest = np.divmod((k + 1) * distinct, limit)
            # In units of 1 / (k * limit), to stay with whole numbers.
            shares = np.where(rest == 0, k * distinct, whole * limit)
            least = max(least, -(-int((shares * counts).sum()) // (k * limit)))
    return least


def _fewest_packs(sizes: Integers, limits: Limits) -> Integers:
    """Return the pack of each record of one group by the way that needs the fewest packs."""
    enough = least_packs(sizes[:, 0], sizes[:, 1], limits) * _GOOD_ENOUGH
    best = _first_fit(sizes, limits, largest_first=False)
    for way in (_fill_exactly, _first_fit_largest_first):
        if best.max() + 1 <= enough:
            break
        packs = way(sizes, limits)
        if packs.max() + 1 <= _WORTH_IT * (best.max() + 1):
            best = packs
    return best


def _slots(packs: Integers, order: Integers) -> Integers:
    """Number the records of each pack in the order they were looked at."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    by_pack = np.lexsort((place, packs))
    starts = np.flatnonzero(np.diff(packs[by_pack], prepend=-1))
    lengths = np.diff(starts, append=len(packs))
    slots = np.empty(len(packs), dtype=np.int64)
    slots[by_pack] = np.arange(len(packs)) - np.repeat(starts, lengths)
    return slots


def _first_fit(sizes: Integers, limits: Limits, *, largest_first: bool) -> Integers:
    """Put each record into the first pack with room, window by window.

    In the order given this leaves the packs as mixed as the records; largest first within a window
    fills better where sizes differ much.
    """
    load = (sizes / limits).max(axis=1)
    packs = np.empty(len(sizes), dtype=np.int64)
    count = 0
    for start in range(0, len(sizes), _WINDOW):
        window = np.arange(start, min(start + _WINDOW, len(sizes)))
        if largest_first:
            window = window[np.argsort(-load[window], kind="stable")]
        room = np.empty((2, len(window)), dtype=np.int64)
        opened = 0
        for record, (tokens, tiles) in zip(window, sizes[window].tolist(), strict=True):
            fits = (room[0, :opened] >= tokens) & (room[1, :opened] >= tiles)
            pack = int(fits.argmax()) if opened else 0
            if not opened or not fits[pack]:
                pack = opened
                opened += 1
                room[:, pack] = limits
            room[0, pack] -= tokens
            room[1, pack] -= tiles
            packs[record] = count + pack
        count += opened
    return packs


def _first_fit_largest_first(sizes: Integers, limits: Limits) -> Integers:
    return _first_fit(sizes, limits, largest_first=True)


def _fill_exactly(sizes: Integers, limits: Limits) -> Integers:
    """Fill pack after pack as far as the next few records allow: exact subset sums.

    A pack starts with the record that waits longest. What it can hold together with the others of
    a small pool is a set of reachable sums, kept as the bits of one whole number: bit
    `scarce * width + other`, of the limit that the records use up sooner and the other one. Adding
    a record shifts the bits; the highest bit is the fullest pack.
    """
    used = sizes.sum(axis=0) / limits
    scarce = int(used[1] > used[0])
    units = -(-np.asarray(limits) // _UNITS)
    # Sizes are rounded up to units, limits down: what fits in units fits.
    counted = (-(-sizes // units)).tolist()
    most = [limit // unit for limit, unit in zip(limits, units.tolist(), strict=True)]
    width = 2 * most[1 - scarce] + 1
    row = (1 << (most[1 - scarce] + 1)) - 1
    valid = sum(row << (level * width) for level in range(most[scarce] + 1))
    shifts = [size[scarce] * width + size[1 - scarce] for size in counted]
    packs = np.empty(len(sizes), dtype=np.int64)
    pool = list(range(min(_POOL, len(sizes))))
    following = len(pool)
    count = 0
    while pool:
        chosen = _fullest(pool, shifts, valid)
        packs[chosen] = count
        count += 1
        taken = set(chosen)
        pool = [record for record in pool if record not in taken]
        refill = min(len(taken), len(sizes) - following)
        pool.extend(range(following, following + refill))
        following += refill
    return packs


def _fullest(pool: Sequence[int], shifts: Sequence[int], valid: int) -> list[int]:
    """Return the first record of `pool` and those that fill its pack the most."""
    first, others = pool[0], sorted(pool[1:], key=shifts.__getitem__)
    reached = [1 << shifts[first]]
    for record in others:
        reached.append(reached[-1] | ((reached[-1] << shifts[record]) & valid))
    state = reached[-1].bit_length() - 1
    chosen = [first]
    # Large records are asked first, so that small ones stay to fill gaps of later packs.
    for step in range(len(others) - 1, -1, -1):
        before = state - shifts[others[step]]
        if before >= 0 and reached[step] >> before & 1:
            chosen.append(others[step])
            state = before
    return chosen
