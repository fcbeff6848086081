"""Mosaics: layout, label and likeness to Pillow's, for plain, odd and damaged views."""

import io
import math
import pickle
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from adapt.coords import NUSCENES, MosaicLayout
from adapt.images import ImageError
from adapt.mosaic import LABEL_FONT, Mosaic, draw_label
from adapt.records import Picture

CAMERAS = [camera for row in NUSCENES.cameras for camera in row]


def view(seed: int, size: tuple[int, int] = (1600, 900)) -> Image.Image:
    """A random scene: soft fields of colour with some grey detail, as a camera sees them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (225, 400), np.uint8))
    return Image.blend(coarse.resize(size), fine.resize(size).convert("RGB"), 0.1)


def write_views(folder: Path, suffix: str = ".jpg", **options: object) -> Mosaic:
    views = []
    for seed, camera in enumerate(CAMERAS):
        path = folder / f"{camera}{suffix}"
        view(seed).save(path, **options)
        views.append((camera, path))
    return Mosaic(tuple(views), "images/s_f.jpg")


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Mosaic:
    return write_views(tmp_path_factory.mktemp("views"), quality=92)


def pillow_mosaic(mosaic: Mosaic) -> Image.Image:
    """The reference: resize each view, write its name on it, paste."""
    font = ImageFont.truetype(str(LABEL_FONT), 50)
    canvas = Image.new("RGB", (2688, 896))
    for index, camera in enumerate(CAMERAS):
        cell = Image.open(dict(mosaic.views)[camera]).convert("RGB").resize((896, 448))
        ImageDraw.Draw(cell).text((0, 0), camera, fill=(255, 0, 255), font=font)
        canvas.paste(cell, (index % 3 * 896, index // 3 * 448))
    return canvas


def psnr_db(found: object, expected: object) -> float:
    difference = np.asarray(found).astype(np.float64) - np.asarray(expected)
    return 10 * math.log10(255**2 / float(np.mean(difference**2)))


def test_a_mosaic_is_a_picture(mosaic: Mosaic) -> None:
    assert isinstance(mosaic, Picture)
    assert mosaic.size == (2688, 896)
    assert mosaic.file == "images/s_f.jpg"
    assert pickle.loads(pickle.dumps(mosaic)) == mosaic


def test_it_looks_like_pillows(mosaic: Mosaic) -> None:
    assert psnr_db(mosaic.pixels(), pillow_mosaic(mosaic)) > 50


def test_every_cell_is_in_its_place(mosaic: Mosaic) -> None:
    pixels = mosaic.pixels()
    for index, camera in enumerate(CAMERAS):
        left, top = index % 3 * 896, index // 3 * 448
        expected = Image.open(dict(mosaic.views)[camera]).convert("RGB").resize((896, 448))
        cell = pixels[top + 60 : top + 448, left : left + 896]
        assert psnr_db(cell, np.asarray(expected)[60:]) > 48, camera


def test_real_frames_reach_50_db(shared: Path) -> None:
    from adapt.converters import drivelm
    from adapt.records import Record

    results = drivelm.convert(shared / "data" / "drivelm_nuscenes", "train")
    mosaics = {
        result.image[0].file: result.image[0]
        for result in results
        if isinstance(result, Record) and isinstance(result.image[0], Mosaic)
    }
    found = {name: psnr_db(m.pixels(), pillow_mosaic(m)) for name, m in mosaics.items()}
    assert len(found) == 6
    assert min(found.values()) > 50, found


def test_the_label_is_pillows_to_the_bit() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    below = rng.integers(0, 256, (448, 896, 3), np.uint8)
    expected = Image.fromarray(below)
    font = ImageFont.truetype(str(LABEL_FONT), 50)
    ImageDraw.Draw(expected).text((0, 0), "CAM_BACK_LEFT", fill=(255, 0, 255), font=font)
    draw_label("CAM_BACK_LEFT", below)
    np.testing.assert_array_equal(below, np.asarray(expected))


def test_a_label_wider_than_its_cell_is_cut() -> None:
    cell = np.zeros((40, 60, 3), np.uint8)
    draw_label("CAM_FRONT_RIGHT", cell)
    assert cell.any()


def test_the_file_is_a_jpeg_of_the_pixels(mosaic: Mosaic) -> None:
    image = Image.open(io.BytesIO(mosaic.make()))
    assert (image.format, image.size, image.mode) == ("JPEG", (2688, 896), "RGB")
    assert psnr_db(image, mosaic.pixels()) > 30


def test_quality_is_obeyed(mosaic: Mosaic) -> None:
    low, high = (Mosaic(mosaic.views, mosaic.file, quality=quality).make() for quality in (50, 95))
    assert len(low) < len(mosaic.make()) < len(high)
    tables = [Image.open(io.BytesIO(data)).quantization for data in (low, high)]
    pillow = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pillow, "JPEG", quality=95)
    assert tables[1] == Image.open(pillow).quantization
    assert tables[0] != tables[1]


def test_the_same_views_give_the_same_bytes(mosaic: Mosaic) -> None:
    found = [mosaic.make()]
    other = Mosaic(mosaic.views[::-1], mosaic.file)
    other.make()
    threads = [Thread(target=lambda: found.append(mosaic.make())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_pixels_are_not_drawn_over_by_the_next_mosaic(mosaic: Mosaic, tmp_path: Path) -> None:
    first = mosaic.pixels()
    kept = first.copy()
    write_views(tmp_path, quality=10).make()
    np.testing.assert_array_equal(first, kept)


class TestSlowRoad:
    """Views that are not plain 1600x900 JPEGs are resized by Pillow itself."""

    def test_png_views_equal_pillow(self, tmp_path: Path) -> None:
        mosaic = write_views(tmp_path, ".png", compress_level=0)
        np.testing.assert_array_equal(mosaic.pixels(), np.asarray(pillow_mosaic(mosaic)))

    @pytest.mark.parametrize("size", [(800, 450), (448, 896), (1601, 900)])
    def test_other_sizes_equal_pillow(
        self, mosaic: Mosaic, tmp_path: Path, size: tuple[int, int]
    ) -> None:
        path = tmp_path / "a.jpg"
        view(9, size).save(path, quality=90)
        cell = cell_of(with_view(mosaic, "CAM_BACK", path), "CAM_BACK")
        expected = np.asarray(Image.open(path).resize((896, 448)))
        np.testing.assert_array_equal(cell[60:], expected[60:])

    def test_grey_views_equal_pillow(self, mosaic: Mosaic, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        view(9).convert("L").save(path, quality=90)
        cell = cell_of(with_view(mosaic, "CAM_BACK", path), "CAM_BACK")
        expected = np.asarray(Image.open(path).convert("RGB").resize((896, 448)))
        np.testing.assert_array_equal(cell[60:], expected[60:])

    def test_a_turned_view_is_turned_back(self, mosaic: Mosaic, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        exif = Image.Exif()
        exif[0x0112] = 3
        view(9).rotate(180).save(path, quality=95, exif=exif)
        cell = cell_of(with_view(mosaic, "CAM_BACK", path), "CAM_BACK")
        assert psnr_db(cell[60:], np.asarray(view(9).resize((896, 448)))[60:]) > 35


def with_view(mosaic: Mosaic, camera: str, path: Path) -> Mosaic:
    views = {**dict(mosaic.views), camera: path}
    return Mosaic(tuple(views.items()), mosaic.file)


def cell_of(mosaic: Mosaic, camera: str) -> np.ndarray:
    left, top = NUSCENES.origin(camera)
    return mosaic.pixels()[top : top + 448, left : left + 896]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: None, "image-missing"),
        (lambda data: b"", "image-empty"),
        (lambda data: data[: len(data) // 2], "image-truncated"),
        (lambda data: data[:-2], "image-truncated"),
        (lambda data: data[:200], "image-truncated"),
        (lambda data: data.replace(data[20000:20010], b"\xff\xd9"), "image-damaged"),
        (lambda data: b"not a picture", "image-damaged"),
        (lambda data: b"\xff\xd8\xff", "image-damaged"),
        (lambda data: b"\xff\xd8\xff\xe0\x00\x02\xff", "image-damaged"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "image-damaged"),
    ],
)
def test_a_bad_view_has_its_reason(
    mosaic: Mosaic, tmp_path: Path, change: object, reason: str
) -> None:
    path = tmp_path / "bad.jpg"
    data = change(dict(mosaic.views)["CAM_FRONT"].read_bytes())  # type: ignore[operator]
    if data is not None:
        path.write_bytes(data)
    broken = with_view(mosaic, "CAM_FRONT", path)
    for work in (broken.make, broken.pixels):
        with pytest.raises(ImageError) as caught:
            work()
        assert caught.value.reason == reason
        assert str(path) in caught.value.detail


def test_a_png_named_jpg_and_a_jpeg_named_png(mosaic: Mosaic, tmp_path: Path) -> None:
    png, jpeg = tmp_path / "a.jpg", tmp_path / "a.png"
    view(0).save(png, "PNG", compress_level=0)
    view(0).save(jpeg, "JPEG")
    for path in (png, jpeg):
        with pytest.raises(ImageError) as caught:
            with_view(mosaic, "CAM_FRONT", path).make()
        assert caught.value.reason == "wrong-format"


def test_a_rig_of_another_shape(mosaic: Mosaic) -> None:
    layout = MosaicLayout(
        name="ragged",
        cameras=(("CAM_FRONT",), ("CAM_BACK", "CAM_BACK_LEFT")),
        view_width=1600,
        view_height=900,
        cell_width=320,
        cell_height=180,
        label=False,
    )
    small = Mosaic(mosaic.views, "images/s.jpg", layout)
    pixels = small.pixels()
    assert small.size == (640, 360)
    assert pixels.shape == (360, 640, 3)
    assert not pixels[:180, 320:].any()
    expected = Image.open(dict(mosaic.views)["CAM_BACK_LEFT"]).resize((320, 180))
    np.testing.assert_array_equal(pixels[180:, 320:], np.asarray(expected))
