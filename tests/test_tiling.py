"""Grids as the reference chooses them, tiles as Pillow cuts them."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adapt.errors import RecordError
from adapt.images import ImageError
from adapt.tiling import (
    Grid,
    candidate_grids,
    choose_grid,
    count_tiles,
    cut_tiles,
    draw_jpeg_qualities,
    grids_for,
    load_tiles,
    record_grids,
    record_tiles,
)

SIDES = st.one_of(
    st.integers(1, 5000),
    st.sampled_from([1, 10, 448, 560, 625, 633, 634, 896, 1000, 1250, 2500, 3750, 5000, 10**6]),
)
LIMITS = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted)


def nearest_grid(width, height, min_tiles, max_tiles):
    """The reference's rule, written as its two sentences: nearest shape, area decides ties."""
    pairs = {
        (columns, rows)
        for side in range(min_tiles, max_tiles + 1)
        for columns in range(1, side + 1)
        for rows in range(1, side + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    ordered = sorted(pairs, key=lambda pair: pair[0] * pair[1])
    distances = [abs(width / height - columns / rows) for columns, rows in ordered]
    tied = [pair for pair, gap in zip(ordered, distances, strict=True) if gap == min(distances)]
    # The first of the nearest, unless later ones are large enough for the picture.
    enough = [pair for pair in tied[1:] if width * height > 0.5 * 448 * 448 * pair[0] * pair[1]]
    return enough[-1] if enough else tied[0]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_golden_grids(shared):
    cases = json.loads((shared / "goldens" / "tiling.json").read_text())
    assert len(cases) == 161
    for case in cases:
        limits = {"min_tiles": case["min_tiles"], "max_tiles": case["max_tiles"]}
        size = case["width"], case["height"]
        assert choose_grid(*size, **limits) == (case["columns"], case["rows"]), case
        pictures = count_tiles(*size, **limits, thumbnail=case["use_thumbnail"])
        assert pictures == case["images_fed_to_vit"], case


@given(SIDES, SIDES, LIMITS)
def test_any_grid_is_the_nearest(width, height, limits):
    low, high = limits
    found = choose_grid(width, height, min_tiles=low, max_tiles=high)
    assert found == nearest_grid(width, height, low, high)


@given(st.lists(st.tuples(SIDES, SIDES), max_size=30), LIMITS)
def test_many_at_once_are_as_one_by_one(sizes, limits):
    low, high = limits
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    found = grids_for(widths, heights, min_tiles=low, max_tiles=high)
    expected = [choose_grid(*size, min_tiles=low, max_tiles=high) for size in sizes]
    assert found.tolist() == [list(grid) for grid in expected]


@pytest.mark.parametrize(
    ("size", "limits", "grid"),
    [
        # 1:1 has 1x1, 2x2 and 3x3: each next one needs more than half of its pixels.
        ((448, 448), (1, 12), (1, 1)),
        ((633, 633), (1, 12), (1, 1)),
        ((634, 634), (1, 12), (2, 2)),
        ((950, 950), (1, 12), (2, 2)),
        ((951, 951), (1, 12), (3, 3)),
        # 5:4 lies in the middle of 1x1 and 3x2.
        ((500, 400), (1, 6), (1, 1)),
        ((5000, 4000), (1, 6), (3, 2)),
        # Equally near and equally many tiles: the order of candidates decides.
        ((5, 4), (2, 2), (1, 2)),
        ((5000, 4000), (2, 2), (2, 1)),
        ((5000, 8000), (4, 4), (2, 2)),
        ((5, 2), (4, 4), (4, 1)),
        ((100_000, 1), (1, 12), (12, 1)),
        ((1, 100_000), (1, 40), (1, 40)),
    ],
)
def test_ties_and_extremes(size, limits, grid):
    assert choose_grid(*size, min_tiles=limits[0], max_tiles=limits[1]) == grid
    assert nearest_grid(*size, *limits) == grid


def test_candidates_are_every_grid_within_the_limits():
    assert candidate_grids(3, 4) == ((1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert {grid.tiles for grid in candidate_grids(1, 12)} == set(range(1, 13))


@pytest.mark.parametrize("limits", [(0, 4), (5, 4), (-1, 1)])
def test_impossible_limits(limits):
    with pytest.raises(ValueError, match=r"need 1 <= min_tiles <= max_tiles"):
        choose_grid(10, 10, min_tiles=limits[0], max_tiles=limits[1])


def test_impossible_sizes():
    with pytest.raises(ValueError, match=r"picture of 0x10 px: both sides must be positive"):
        choose_grid(0, 10, min_tiles=1, max_tiles=4)
    with pytest.raises(ValueError, match=r"below 1 px"):
        grids_for([10, -3], [10, 10], min_tiles=1, max_tiles=4)


def test_tiles_of_records():
    assert record_tiles([], [], "conversation", max_tiles=12) == []
    assert record_tiles([2688], [896], "multiview", max_tiles=12) == [13]
    assert record_tiles([2688], [896], "multiview", max_tiles=12, thumbnail=False) == [12]
    # Several images share the tiles, and each that is cut has a thumbnail.
    assert record_tiles([1600, 448], [800, 448], "vqa", max_tiles=12) == [3, 1]
    assert record_tiles([1600] * 5, [800] * 5, "vqa", max_tiles=12) == [3] * 5
    assert record_tiles([1600] * 20, [800] * 20, "vqa", max_tiles=12) == [1] * 20
    # A video frame is one tile, whatever the limits say.
    assert record_tiles([1600] * 3, [800] * 3, "video", max_tiles=12, min_tiles=4) == [1] * 3
    assert record_grids([448], [448], "vqa", max_tiles=6, min_tiles=4) == [Grid(2, 2)]


def test_tiles_of_records_need_a_height_for_each_width():
    with pytest.raises(ValueError, match="zip"):
        record_tiles([10, 10], [10], "vqa", max_tiles=12)


@pytest.mark.parametrize("size", [(2688, 896), (300, 500), (1000, 410), (448, 448), (7, 3)])
@pytest.mark.parametrize("thumbnail", [True, False])
def test_tiles_are_pillows_crops(size, thumbnail):
    image = noise(*size)
    grid = choose_grid(*size, min_tiles=1, max_tiles=12)
    whole = image.resize((grid.columns * 448, grid.rows * 448))
    crops = [
        whole.crop((column * 448, row * 448, (column + 1) * 448, (row + 1) * 448))
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    if thumbnail and len(crops) > 1:
        crops.append(image.resize((448, 448)))
    expected = np.stack([np.asarray(crop).transpose(2, 0, 1) for crop in crops])
    found = cut_tiles(image, grid, thumbnail=thumbnail)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_small_tiles():
    found = cut_tiles(noise(64, 32), Grid(2, 1), tile_px=32)
    assert found.shape == (3, 3, 32, 32)
    assert np.array_equal(found[1], np.asarray(noise(64, 32))[:, 32:].transpose(2, 0, 1))


def test_only_rgb_is_cut():
    with pytest.raises(ValueError, match="mode L"):
        cut_tiles(noise(10, 10).convert("L"), Grid(1, 1))


def test_loading_cuts_the_file(tmp_path):
    noise(900, 448).save(tmp_path / "a.png")
    found = load_tiles(tmp_path / "a.png", Grid(2, 1), size=(900, 448))
    assert np.array_equal(found, cut_tiles(noise(900, 448), Grid(2, 1)))


def test_loading_turns_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(448, 896).save(tmp_path / "a.png", exif=exif)
    found = load_tiles(tmp_path / "a.png", Grid(2, 1), size=(896, 448), thumbnail=False)
    turned = noise(448, 896).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(found, cut_tiles(turned, Grid(2, 1), thumbnail=False))


def test_loading_refuses_another_size(tmp_path):
    noise(90, 44).save(tmp_path / "a.png")
    with pytest.raises(
        RecordError, match=r"a\.png: the picture is 90x44 px, its record says 90x45"
    ):
        load_tiles(tmp_path / "a.png", Grid(2, 1), size=(90, 45))


def test_loading_refuses_damage(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        load_tiles(tmp_path / "a.jpg", Grid(1, 1))


def test_jpeg_augmentation_is_a_round_trip_of_each_tile(tmp_path):
    noise(96, 32).resize((192, 64)).save(tmp_path / "a.png")
    plain = load_tiles(tmp_path / "a.png", Grid(3, 1), tile_px=64)
    found = load_tiles(tmp_path / "a.png", Grid(3, 1), tile_px=64, jpeg_quality=[75, 90, 100, 80])
    for tile, before, quality in zip(found, plain, [75, 90, 100, 80], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(before.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
        assert np.array_equal(tile, expected)
        assert not np.array_equal(tile, before)
    same = load_tiles(tmp_path / "a.png", Grid(3, 1), tile_px=64, jpeg_quality=75)
    assert np.array_equal(same[0], found[0])


def test_jpeg_qualities_depend_on_their_key_alone():
    assert draw_jpeg_qualities(5, 42, 0, 7, 0) == [81, 100, 96, 86, 90]
    assert draw_jpeg_qualities(3, 42, 0, 7, 0) == [81, 100, 96]
    drawn = draw_jpeg_qualities(2000, 1)
    assert set(drawn) == set(range(75, 101))
    assert draw_jpeg_qualities(2000, 2) != drawn


def test_the_core_does_without_torch():
    code = (
        "import sys, adapt.tiling, adapt.recipe, adapt.recipe_view\n"
        "print([name for name in ('torch', 'transformers', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_a_mosaic_is_not_resized():
    """The fast path of DriveLM's mosaic gives the picture's own pixels."""
    tiles = cut_tiles(noise(2688, 896), Grid(6, 2))
    pixels = np.asarray(noise(2688, 896))
    assert np.array_equal(tiles[7], pixels[448:, 448:896].transpose(2, 0, 1))
    assert len(tiles) == 13
