"""Packs in the background: read ahead by threads, handed out in order.

Threads, not processes: what takes time (decoding, resizing, tokenising) is C that releases the
interpreter, threads share the cache of tiles, and a rank with a GPU cannot be forked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Slot = TypeVar("Slot")
Item = TypeVar("Item")

AHEAD = 2
"""Items waiting or in work, a worker."""


def read_ahead(
    read: Callable[[Slot], Item], slots: Iterable[Slot], *, workers: int
) -> Generator[Item, None, None]:
    """Yield `read(slot)` for each slot, in order, `workers` of them being read at any time.

    What `read` raises is raised here, in its turn. Close the iterator to stop the workers.

    Args:
        read: Called in worker threads.
        slots: What to read.
        workers: Threads; 0 reads in the caller's thread, when asked.
    """
    if workers == 0:
        yield from map(read, slots)
        return
    waiting: deque[Future[Item]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pack-reader")
    try:
        for slot in slots:
            waiting.append(pool.submit(read, slot))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class TileCache:
    """The tiles of the pictures used last, for records that share a picture; thread-safe.

    Args:
        most_bytes: Memory it may hold.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tiles: OrderedDict[object, npt.NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, load: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Return the tiles of `key`, loading them when they are not here."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tiles = load()
        with self._lock:
            if key not in self._tiles and tiles.nbytes <= self._most_bytes:
                self._tiles[key] = tiles
                self._bytes += tiles.nbytes
                while self._bytes > self._most_bytes:
                    self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tiles
