"""Draw rows for a mix: samples without replacement, repeats, order; pure functions of a seed.

Every draw gives each row a 64-bit number of its own stream and takes the rows with the smallest.
Only the raw stream of PCG64 is used, which numpy promises to keep; so a mix has the same bytes
under any version of it. A stream is named by what it is for, so that one source's draw does not
depend on the others.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_COPIES = 2**15 - 1

Indices = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows chosen from sources, in no particular order.

    Args:
        source: [rows] int16, index of the source.
        row: [rows] int64, row within the source, over all its files.
        copy: [rows] int64, 0 for the first copy of a row, 1 for its second, ...
    """

    source: NDArray[np.int16]
    row: Indices
    copy: Indices

    def take(self, positions: Indices) -> Rows:
        """Return the rows at these positions, in their order."""
        return Rows(self.source[positions], self.row[positions], self.copy[positions])


def join(parts: list[Rows]) -> Rows:
    """Return the rows of all parts, one part after another."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Rows(none.astype(np.int16), none, none)
    sources, indices, copies = zip(*parts, strict=True)
    return Rows(np.concatenate(sources), np.concatenate(indices), np.concatenate(copies))


def round_half_up(value: Fraction) -> int:
    """Round to the nearest whole number, halves up.

    >>> round_half_up(Fraction(5, 2)), round_half_up(Fraction(531, 4))
    (3, 133)
    """
    return math.floor(value + Fraction(1, 2))


def shuffled(total: int, *, seed: int, purpose: str) -> Indices:
    """Return 0 to total - 1 in random order, all orders equally likely."""
    digest = hashlib.sha256(f"{seed}\n{purpose}".encode()).digest()
    stream = np.random.PCG64(int.from_bytes(digest))
    numbers = np.asarray(stream.random_raw(total), np.uint64).reshape(total)
    # Each number's low bits make room for its position: sorting then carries the positions along,
    # ten times faster than a stable argsort, and no two are equal.
    bits = np.uint64(total.bit_length())
    numbers = (numbers >> bits << bits) | np.arange(total, dtype=np.uint64)
    numbers.sort()
    return (numbers & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def sample(total: int, count: int, *, seed: int, purpose: str) -> Indices:
    """Return `count` of 0 to total - 1, in order, all choices equally likely."""
    if count >= total:
        return np.arange(total)
    return np.sort(shuffled(total, seed=seed, purpose=purpose)[:count])


def repeat_rows(rows: int, times: Fraction, *, seed: int, purpose: str) -> tuple[Indices, Indices]:
    """Repeat rows 0 to rows - 1; a fraction of a time adds a sample.

    Returns:
        Row and copy number of each repetition.
    """
    whole = math.floor(times)
    part = sample(rows, round_half_up((times - whole) * rows), seed=seed, purpose=purpose)
    index = np.concatenate([np.tile(np.arange(rows), whole), part])
    copy = np.concatenate([np.repeat(np.arange(whole), rows), np.full(len(part), whole)])
    return index, copy


def draw_with_repeats(pool: Rows, count: int, *, copies: Indices, seed: int) -> Rows:
    """Draw `count` rows: the whole pool as often as it fits, then a sample of it.

    Args:
        pool: Rows to draw from; not empty unless `count` is 0.
        count: Rows to draw, also more than there are.
        copies: [sources] copies that the pool may hold of each source's rows.
        seed: Seed of the draw.
    """
    total = len(pool.row)
    passes = count // total if total else 0
    rest = sample(total, count - passes * total, seed=seed, purpose="general")
    positions = np.concatenate([np.tile(np.arange(total), passes), rest])
    drawn = pool.take(positions)
    turn = np.repeat(np.arange(passes + 1), [total] * passes + [len(rest)])
    return drawn._replace(copy=drawn.copy + turn * copies[drawn.source])
