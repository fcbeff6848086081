"""From a place in the plan to a pack: read the lines, tokenise, open the pictures, cut the tiles.

    Slot(epoch, pack) --plan--> rows of the mix --mix--> records --handle--> tokens
                                                              \\--tiling--> tiles

What is read must be what was planned, token for token and tile for tile; if it isn't, a file has
changed since. A picture that cannot be read stops the run, or takes its record out of the pack
and is counted, up to the recipe's `max_unreadable`; it is never replaced.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapt.errors import RecordError
from adapt.images import ImageError
from adapt.models.chat import UNSUPERVISED
from adapt.reading_ahead import TileCache
from adapt.tiling import Grid, Pixels, draw_jpeg_qualities, load_tiles, record_grids
from adapt.train.collate import Filler, LoadedRecord, Pack, collate

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.handle import ModelHandle
    from adapt.plan import Plan, PlannedRecord
    from adapt.recipe import Recipe
    from adapt.records import RecordLine

CACHE_BYTES = 512 * 2**20
"""Tiles kept for records that share a picture: 65 mosaics of DriveLM."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A pack that a rank will run: which one, None for an empty one, and in which epoch."""

    epoch: int
    pack: int | None


@dataclass(frozen=True, slots=True)
class Lost:
    """A record that could not be read: its row of the mix, its id, and why."""

    mix_index: int
    id: str
    why: str


@dataclass(frozen=True, slots=True)
class ReadPack:
    """A pack, and the records it lacks."""

    pack: Pack
    lost: tuple[Lost, ...]


class PackReader:
    """Reads packs of a plan; thread-safe.

    Args:
        recipe: Of the run.
        plan: Which records make a pack.
        mix: Where they are.
        handle: Tokenizer and chat template.
    """

    def __init__(self, recipe: Recipe, plan: Plan, mix: Mix, handle: ModelHandle) -> None:
        self._recipe, self.plan, self._mix, self._handle = recipe, plan, mix, handle
        self._mix_lock = threading.Lock()
        self._cache = TileCache(CACHE_BYTES)
        self.filler = Filler(handle.image_token_id, handle.tokens_per_tile, handle.tile_px)

    def read(self, slot: Slot) -> ReadPack:
        """Read a pack; an empty slot gives an empty pack.

        Raises:
            RecordError: A record is not what was planned, or cannot be read and
                `max_unreadable` is 0.
        """
        planned = [] if slot.pack is None else self.plan.pack(slot.pack)
        records: list[LoadedRecord] = []
        lost: list[Lost] = []
        for one in planned:
            try:
                records.append(self.record(one, epoch=slot.epoch))
            except UnreadableRecord as error:
                if self._recipe.max_unreadable == 0:
                    raise
                lost.append(error.lost)
        return ReadPack(collate(records, self._recipe.loss, self.filler), tuple(lost))

    def record(self, planned: PlannedRecord, *, epoch: int) -> LoadedRecord:
        """Read a record.

        Raises:
            UnreadableRecord: A picture of it is missing, damaged or of another size.
            RecordError: It is not what was planned.
        """
        with self._mix_lock:
            record = self._mix.record(planned.mix_index)
        tiles = self._tiles(record, planned.mix_index, epoch)
        sample = self._handle.encode(record.conversations, [len(part) for part in tiles])
        found = LoadedRecord(
            input_ids=np.asarray(sample.input_ids, dtype=np.int64),
            labels=np.asarray(sample.labels, dtype=np.int64),
            tiles=np.concatenate(tiles) if tiles else self._no_tiles(),
        )
        self._compare(record, planned, found)
        return found

    def _tiles(self, record: RecordLine, mix_index: int, epoch: int) -> list[Pixels]:
        grids = record_grids(
            record.width_list,
            record.height_list,
            record.task,
            max_tiles=self._recipe.max_tiles,
            min_tiles=self._recipe.min_tiles,
        )
        try:
            return [
                self._picture(record, image, grid, (self._recipe.seed, epoch, mix_index, image))
                for image, grid in enumerate(grids)
            ]
        except (ImageError, RecordError) as error:
            raise UnreadableRecord(Lost(mix_index, record.id, str(error))) from error

    def _picture(self, record: RecordLine, image: int, grid: Grid, key: tuple[int, ...]) -> Pixels:
        thumbnail, tile_px = self._recipe.thumbnail, self._handle.tile_px
        qualities: tuple[int, ...] | None = None
        if self._recipe.jpeg_augmentation and record.task != "video":
            qualities = tuple(draw_jpeg_qualities(grid.pictures(thumbnail=thumbnail), *key))
        path = self._mix.image_path(key[2], record.image[image])
        size = (record.width_list[image], record.height_list[image])

        def load() -> Pixels:
            return load_tiles(
                path, grid, size=size, thumbnail=thumbnail, tile_px=tile_px, jpeg_quality=qualities
            )

        # What is augmented comes out differently each time: keeping it would be in vain.
        return load() if qualities else self._cache.get((path, grid, size), load)

    def _no_tiles(self) -> Pixels:
        side = self._handle.tile_px
        return np.empty((0, 3, side, side), dtype=np.uint8)

    @staticmethod
    def _compare(record: RecordLine, planned: PlannedRecord, found: LoadedRecord) -> None:
        """Refuse a record that changed since it was planned."""
        supervised = int(np.count_nonzero(found.labels[1:] != UNSUPERVISED))
        counts = (len(found.input_ids), len(found.tiles), supervised)
        expected = (planned.tokens, planned.tiles, planned.supervised)
        if counts != expected:
            raise RecordError(
                f"record {record.id}: has {counts} tokens, tiles and supervised tokens, was "
                f"planned with {expected}; a records file or the tokenizer changed since: mix and "
                f"plan again"
            )


class UnreadableRecord(RecordError):
    """A picture of a record is missing, damaged or of another size."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(
            f"record {lost.id} (row {lost.mix_index} of the mix): {lost.why}; mend it, or let the "
            f"run go on without such records: --set max_unreadable=N"
        )
        self.lost = lost
