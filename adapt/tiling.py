"""Tiling: image size -> grid of tiles -> count of tiles, and the tiles themselves.

    2688x896 -> Grid(6, 2) -> 12 tiles of 448x448, row by row, + 1 thumbnail = 13 pictures

        0 | 1 | 2 | 3 | 4 | 5         The whole picture is resized to 6*448 x 2*448 (bicubic), then
        6 | 7 | 8 | 9 | 10| 11        cut; the thumbnail, all of it in 448x448, comes last.

The grid is the one whose columns / rows come nearest to the picture's width / height, as InternVL
chooses it. A picture never decides its count of tiles when it is opened: the sizes in the record
do, so that a plan and the training that follows it cannot disagree.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.errors import RecordError

if TYPE_CHECKING:
    from PIL import Image

TILE_PX = 448
# The area rule of the reference is stated for 448-pixel tiles, whatever the model's own size.
_TIE_AREA_PX = 0.5 * TILE_PX * TILE_PX
# The reference's augmentation draws from these.
JPEG_QUALITIES = range(75, 101)

Pixels = npt.NDArray[np.uint8]


class Grid(NamedTuple):
    """How a picture is cut: `columns` x `rows` tiles."""

    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """Tiles of the grid, without the thumbnail."""
        return self.columns * self.rows

    def pictures(self, *, thumbnail: bool = True) -> int:
        """Return the pictures fed to the vision tower: the tiles, and a thumbnail of several."""
        return self.tiles + (thumbnail and self.tiles > 1)


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Return every grid of `min_tiles` to `max_tiles` tiles, fewest tiles first.

    Raises:
        ValueError: The limits leave no grid.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"tile limits {min_tiles}..{max_tiles}: need 1 <= min_tiles <= max_tiles")
    # Among grids of the same tile count the reference has the order of a Python set filled this
    # way, and the last of two equally near grids may win: so the order belongs to the contract.
    found: set[tuple[int, int]] = set()
    for side in range(min_tiles, max_tiles + 1):
        for columns in range(1, side + 1):
            for rows in range(1, min(side, max_tiles // columns) + 1):
                if columns * rows >= min_tiles:
                    found.add((columns, rows))
    return tuple(Grid(*pair) for pair in sorted(found, key=lambda pair: pair[0] * pair[1]))


@lru_cache(maxsize=65536)
def choose_grid(width: int, height: int, *, min_tiles: int, max_tiles: int) -> Grid:
    """Return the grid whose shape is nearest to that of a `width` x `height` pixel picture.

    Of two equally near grids the one with more tiles wins when the picture has more than half the
    pixels that its tiles would have.

    Raises:
        ValueError: A side is not positive, or the limits leave no grid.

    >>> choose_grid(2688, 896, min_tiles=1, max_tiles=12)
    Grid(columns=6, rows=2)
    """
    if width < 1 or height < 1:
        raise ValueError(f"picture of {width}x{height} px: both sides must be positive")
    aspect, area = width / height, width * height
    best, best_distance = Grid(1, 1), float("inf")
    for grid in candidate_grids(min_tiles, max_tiles):
        distance = abs(aspect - grid.columns / grid.rows)
        if distance < best_distance:
            best, best_distance = grid, distance
        elif distance == best_distance and area > _TIE_AREA_PX * grid.tiles:
            best = grid
    return best


def grids_for(
    widths: npt.ArrayLike, heights: npt.ArrayLike, *, min_tiles: int, max_tiles: int
) -> npt.NDArray[np.int64]:
    """Return [pictures, 2] columns and rows: `choose_grid` for many pictures at once.

    Raises:
        ValueError: A side is not positive, or the limits leave no grid.
    """
    sizes = np.stack([np.asarray(widths), np.asarray(heights)], axis=-1).astype(np.int64)
    if sizes.size and sizes.min() < 1:
        raise ValueError("a picture has a side below 1 px: both sides must be positive")
    # Datasets repeat few sizes: each is decided once.
    distinct, place = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_inverse=True)
    width, height = distinct >> 32, distinct & 0xFFFFFFFF
    aspect, area = width / height, (width * height).astype(np.float64)
    best = np.ones((len(distinct), 2), dtype=np.int64)
    best_distance = np.full(len(distinct), np.inf)
    for grid in candidate_grids(min_tiles, max_tiles):
        distance = np.abs(aspect - grid.columns / grid.rows)
        nearer = distance < best_distance
        tied = (distance == best_distance) & (area > _TIE_AREA_PX * grid.tiles)
        best[nearer | tied] = grid
        best_distance[nearer] = distance[nearer]
    return best[place]


def count_tiles(
    width: int, height: int, *, min_tiles: int = 1, max_tiles: int, thumbnail: bool = True
) -> int:
    """Return the pictures fed to the vision tower for one image, the thumbnail included.

    >>> count_tiles(2688, 896, max_tiles=12), count_tiles(448, 448, max_tiles=12)
    (13, 1)
    """
    grid = choose_grid(width, height, min_tiles=min_tiles, max_tiles=max_tiles)
    return grid.pictures(thumbnail=thumbnail)


def tile_limits(images: int, task: str, *, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Return the least and most tiles for each image of a record with `images` images.

    A video frame gets one tile; several images share `max_tiles`, at least one each.
    """
    most = 1 if task == "video" else max(1, max_tiles // max(1, images))
    return min(min_tiles, most), most


def record_grids(
    widths: Sequence[int], heights: Sequence[int], task: str, *, max_tiles: int, min_tiles: int = 1
) -> list[Grid]:
    """Return the grid of each image of a record, from the sizes the record states.

    Raises:
        ValueError: A side is not positive, or the limits leave no grid.
    """
    least, most = tile_limits(len(widths), task, min_tiles=min_tiles, max_tiles=max_tiles)
    return [
        choose_grid(width, height, min_tiles=least, max_tiles=most)
        for width, height in zip(widths, heights, strict=True)
    ]


def record_tiles(
    widths: Sequence[int],
    heights: Sequence[int],
    task: str,
    *,
    max_tiles: int,
    min_tiles: int = 1,
    thumbnail: bool = True,
) -> list[int]:
    """Return the pictures fed to the vision tower for each image of a record.

    >>> record_tiles([2688], [896], "multiview", max_tiles=12)
    [13]
    >>> record_tiles([1280, 1280], [720, 720], "video", max_tiles=12)
    [1, 1]
    """
    grids = record_grids(widths, heights, task, max_tiles=max_tiles, min_tiles=min_tiles)
    return [grid.pictures(thumbnail=thumbnail) for grid in grids]


def cut_tiles(
    image: Image.Image, grid: Grid, *, thumbnail: bool = True, tile_px: int = TILE_PX
) -> Pixels:
    """Cut a picture into the tiles of `grid`, row by row, the thumbnail last.

    Args:
        image: RGB, turned the way it is seen.
        grid: From `choose_grid`.
        thumbnail: Add the whole picture in one tile when the grid has several.
        tile_px: Side of a tile.

    Returns:
        [tiles, 3, tile_px, tile_px] uint8.
    """
    columns, rows = grid
    whole = _resized(image, columns * tile_px, rows * tile_px)
    cells = whole.reshape(rows, tile_px, columns, tile_px, 3)
    tiles = np.empty((grid.pictures(thumbnail=thumbnail), 3, tile_px, tile_px), dtype=np.uint8)
    tiles[: grid.tiles].reshape(rows, columns, 3, tile_px, tile_px)[:] = cells.transpose(
        0, 2, 4, 1, 3
    )
    if len(tiles) > grid.tiles:
        tiles[-1] = _resized(image, tile_px, tile_px).transpose(2, 0, 1)
    return tiles


def load_tiles(
    path: Path,
    grid: Grid,
    *,
    size: tuple[int, int] | None = None,
    thumbnail: bool = True,
    tile_px: int = TILE_PX,
    jpeg_quality: int | Sequence[int] | None = None,
) -> Pixels:
    """Open a picture safely and cut it; see `cut_tiles`.

    Args:
        path: A picture file.
        grid: From the sizes in the record (`record_grids`), as the plan counted it.
        size: Width and height in pixels that the record states; another size is an error.
        thumbnail: Add the whole picture in one tile when the grid has several.
        tile_px: Side of a tile.
        jpeg_quality: Encode each tile as JPEG and decode it again, an augmentation: one quality
            for all tiles or one each (`draw_jpeg_qualities`).

    Returns:
        [tiles, 3, tile_px, tile_px] uint8.

    Raises:
        adapt.images.ImageError: The file is missing, damaged or too large.
        RecordError: The picture's size is not the one stated.
    """
    from adapt.images import open_rgb

    image = open_rgb(path)
    if size is not None and image.size != size:
        raise RecordError(
            f"{path}: the picture is {image.width}x{image.height} px, its record says "
            f"{size[0]}x{size[1]}; convert the dataset again, or run adapt check --images"
        )
    tiles = cut_tiles(image, grid, thumbnail=thumbnail, tile_px=tile_px)
    if jpeg_quality is None:
        return tiles
    qualities = [jpeg_quality] * len(tiles) if isinstance(jpeg_quality, int) else jpeg_quality
    return np.stack([_through_jpeg(*pair) for pair in zip(tiles, qualities, strict=True)])


def draw_jpeg_qualities(count: int, *key: int) -> list[int]:
    """Draw `count` JPEG qualities of 75 to 100, always the same for the same `key`.

    Args:
        count: Tiles of an image.
        key: What the draw depends on: seed, epoch, row of the mix, number of the image.
    """
    seed = hashlib.sha256(",".join(map(str, key)).encode()).digest()
    # The raw stream is the part of a generator that numpy promises to keep.
    draws = np.random.PCG64(int.from_bytes(seed)).random_raw(count)
    return [JPEG_QUALITIES[int(draw % len(JPEG_QUALITIES))] for draw in draws]


def _resized(image: Image.Image, width: int, height: int) -> Pixels:
    """Return [height, width, 3] uint8, by Pillow's bicubic filter unless the size fits already."""
    from PIL import Image

    if image.mode != "RGB":
        raise ValueError(f"cut_tiles needs an RGB picture, got mode {image.mode}")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _through_jpeg(tile: Pixels, quality: int) -> Pixels:
    """Return a [3, px, px] tile as it looks after JPEG at `quality`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0))).save(
        buffer, format="JPEG", quality=quality
    )
    with Image.open(buffer) as image:
        return np.asarray(image).transpose(2, 0, 1)
