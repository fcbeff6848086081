"""Reading ahead in threads, and the cache of tiles."""

import threading

import numpy as np
import pytest

from adapt.errors import RecordError
from adapt.reading_ahead import TileCache, read_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order(workers: int) -> None:
    gates = [threading.Event() for _ in range(6)]

    def read(slot: int) -> int:
        if workers > 1 and slot == 0:
            # The first is done after the second: it must still come first.
            assert gates[1].wait(10)
        gates[slot].set()
        return slot * 10

    assert list(read_ahead(read, range(6), workers=workers)) == [0, 10, 20, 30, 40, 50]


def test_an_error_comes_in_its_turn() -> None:
    def read(slot: int) -> int:
        if slot == 2:
            raise RecordError("row 2 is bad")
        return slot

    items = read_ahead(read, range(5), workers=2)
    assert next(items) == 0
    assert next(items) == 1
    with pytest.raises(RecordError, match="row 2 is bad"):
        next(items)


def test_reading_ahead_is_bounded_and_ends_with_the_reader() -> None:
    started = []
    before = threading.active_count()
    items = read_ahead(lambda slot: started.append(slot) or slot, iter(range(10**6)), workers=2)
    assert next(items) == 0
    items.close()
    assert len(started) <= 5
    assert threading.active_count() == before


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = TileCache(300)
    loads: list[str] = []

    def tiles(key: str) -> np.ndarray:
        def load() -> np.ndarray:
            loads.append(key)
            return np.full(100, ord(key), dtype=np.uint8)

        return cache.get(key, load)

    for key in "abcab":
        assert (tiles(key) == ord(key)).all()
    assert loads == ["a", "b", "c"]
    tiles("d")  # c was used longest ago
    for key in "abd":
        tiles(key)
    assert loads == ["a", "b", "c", "d"]
    tiles("c")
    assert loads == ["a", "b", "c", "d", "c"]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = TileCache(10)
    cache.get("small", lambda: np.zeros(10, dtype=np.uint8))
    cache.get("large", lambda: np.zeros(11, dtype=np.uint8))
    assert len(cache.get("small", lambda: np.zeros(0, dtype=np.uint8))) == 10
    assert len(cache.get("large", lambda: np.zeros(0, dtype=np.uint8))) == 0
