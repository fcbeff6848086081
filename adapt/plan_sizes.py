"""Sizes of a mix's records: tokens, tiles and supervised tokens, without opening a picture.

Tiles come from the sizes that a record states, tokens from its text: each `<image>` counts as one
token while the text is tokenised, and as its tiles' tokens after. A record that stands in the mix
several times is looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adapt.errors import RecordError
from adapt.packing import Integers
from adapt.progress import progress
from adapt.tiling import record_tiles

if TYPE_CHECKING:
    from adapt.mix import Mix
    from adapt.models.chat import Rendered
    from adapt.models.handle import ModelHandle
    from adapt.recipe import Recipe
    from adapt.records import RecordLine

_BATCH = 512
_MOST_LISTED = 100


@dataclass(frozen=True)
class RecordSizes:
    """Sizes of the rows of a mix; [rows] each.

    Args:
        tokens: Tokens, image tokens included.
        tiles: Tiles of all images, thumbnails included.
        supervised: Tokens that are learned.
        fits: False for a row over a limit.
        over: Rows over each limit, by the limit in words.
    """

    tokens: Integers
    tiles: Integers
    supervised: Integers
    fits: npt.NDArray[np.bool_]
    over: Counter[str] = field(default_factory=Counter)


def measure_mix(mix: Mix, recipe: Recipe, handle: ModelHandle) -> RecordSizes:
    """Count the tokens and tiles of every row of a mix.

    Raises:
        RecordError: Some rows cannot be trained on; the first hundred are listed. Rows over a
            limit are among them unless `over_length` is `skip`.
    """
    distinct, copies = _distinct_rows(mix)
    counts = np.zeros((len(distinct), 3), dtype=np.int64)
    problems: list[str] = []
    ruler = _Ruler(mix, recipe, handle)
    with progress("plan", len(distinct), "records") as advance:
        for start in range(0, len(distinct), _BATCH):
            rows = distinct[start : start + _BATCH].tolist()
            counts[start : start + len(rows)] = ruler.measure(rows, problems)
            advance(len(rows))
    _refuse(problems, "records that cannot be trained on", "mend or remove them and mix again")
    tokens, tiles, supervised = counts[copies].T
    over = _over_limits(tokens, tiles, recipe, handle)
    fits = np.ones(len(copies), dtype=bool)
    for rows in over.values():
        fits[rows] = False
    if recipe.over_length == "refuse":
        _refuse(
            [
                f"{mix.place(row)}: {mix.record(row).id}: {tokens[row]} tokens and {tiles[row]} "
                f"tiles, {limit}"
                for limit, rows in over.items()
                for row in rows.tolist()
            ],
            "records over a limit",
            "raise the limit, or leave them out and count them: --set over_length=skip",
        )
    sums = Counter({limit: len(rows) for limit, rows in over.items()})
    return RecordSizes(tokens, tiles, supervised, fits, sums)


def _distinct_rows(mix: Mix) -> tuple[Integers, Integers]:
    """Return one row of the mix for each record, in file order, and which one each row copies."""
    columns = mix.columns
    order = np.lexsort((columns["row"], columns["file"], columns["source"]))
    first = np.zeros(len(order), dtype=bool)
    first[:1] = True
    for name in ("source", "file", "row"):
        first[1:] |= np.diff(columns[name][order]) != 0
    copies = np.empty(len(order), dtype=np.int64)
    copies[order] = np.cumsum(first) - 1
    return order[first], copies


class _Ruler:
    """Counts tokens and tiles; the tokenizer is loaded before it starts."""

    def __init__(self, mix: Mix, recipe: Recipe, handle: ModelHandle) -> None:
        self._mix, self._recipe = mix, recipe
        self._template, self._tokenizer = handle.template, handle.tokenizer
        self._tokens_per_tile = handle.tokens_per_tile

    def measure(self, rows: Sequence[int], problems: list[str]) -> Integers:
        """Return [rows, 3] tokens, tiles, supervised tokens; zeros where a problem is noted."""
        from adapt.models import chat

        counts = np.zeros((len(rows), 3), dtype=np.int64)
        rendered: list[Rendered] = []
        places: list[int] = []
        for place, row in enumerate(rows):
            record = self._mix.record(row)
            try:
                tiles = _tiles(record, self._recipe)
                one_each = [1] * len(tiles)
                rendered.append(chat.render(self._template, record.conversations, one_each))
            except RecordError as error:
                problems.append(f"{self._mix.place(row)}: {record.id}: {error}")
                continue
            places.append(place)
            counts[place, 0] = self._tokens_per_tile * sum(tiles) - len(tiles)
            counts[place, 1] = sum(tiles)
        samples = chat.encode_rendered(self._tokenizer, rendered)
        for place, sample in zip(places, samples, strict=True):
            supervised = len(sample.labels) - sample.labels.count(chat.UNSUPERVISED)
            if not supervised:
                where = self._mix.place(rows[place])
                problems.append(f"{where}: no answer, so nothing to learn")
            counts[place, 0] += len(sample.input_ids)
            counts[place, 2] = supervised
        return counts


def _tiles(record: RecordLine, recipe: Recipe) -> list[int]:
    """Return the tiles of each image of a record.

    Raises:
        RecordError: Its images and their sizes do not match.
    """
    if not len(record.image) == len(record.width_list) == len(record.height_list):
        raise RecordError(
            f"{len(record.image)} images, {len(record.width_list)} widths, "
            f"{len(record.height_list)} heights; make them match"
        )
    try:
        return record_tiles(
            record.width_list,
            record.height_list,
            record.task,
            max_tiles=recipe.max_tiles,
            min_tiles=recipe.min_tiles,
            thumbnail=recipe.thumbnail,
        )
    except ValueError as error:
        raise RecordError(f"{error}; convert the dataset again") from error


def _over_limits(
    tokens: Integers, tiles: Integers, recipe: Recipe, handle: ModelHandle
) -> dict[str, Integers]:
    """Return the rows over each limit, by the limit in words; a row counts for the first."""
    limits = [
        (f"over max_record_tokens {recipe.max_record_tokens}", tokens, recipe.max_record_tokens),
        (f"over max_pack_tokens {recipe.max_pack_tokens}", tokens, recipe.max_pack_tokens),
        (f"over max_pack_tiles {recipe.max_pack_tiles}", tiles, recipe.max_pack_tiles),
    ]
    if handle.max_positions is not None:
        # Beyond it such a model's rope changes for every record of the row.
        name = f"over the {handle.max_positions} positions of {handle.name}"
        limits.append((name, tokens, handle.max_positions))
    over: dict[str, Integers] = {}
    left = np.ones(len(tokens), dtype=bool)
    for name, sizes, limit in limits:
        rows = np.flatnonzero(left & (sizes > limit))
        if len(rows):
            over[name] = rows
            left[rows] = False
    return over


def _refuse(problems: Sequence[str], what: str, advice: str) -> None:
    """Raise if there are problems, listing them."""
    if problems:
        raise RecordError("\n".join([f"{what}: {len(problems)}; {advice}", *_listed(problems)]))


def _listed(problems: Sequence[str]) -> Iterator[str]:
    yield from (f"  {problem}" for problem in problems[:_MOST_LISTED])
    if len(problems) > _MOST_LISTED:
        yield f"  and {len(problems) - _MOST_LISTED} more"
