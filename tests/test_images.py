"""Pictures: sizes and pixels of every format, and what is refused."""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.images import (
    MAX_PIXELS,
    ImageError,
    decode_rgb,
    image_size,
    open_rgb,
    safe_file,
    verify_image,
)

Opener = Callable[[Path], object]
OPENERS: list[Opener] = [image_size, verify_image, open_rgb]
DECODERS: list[Opener] = [verify_image, open_rgb]


def noise(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(7))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def reason(opener: Opener, path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        opener(path)
    assert str(path) in caught.value.detail
    assert str(caught.value).endswith(f"({caught.value.reason})")
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "JPEG"),
        ("a.JPEG", "JPEG"),
        ("a.png", "PNG"),
        ("a.webp", "WEBP"),
        ("a.tif", "TIFF"),
        ("a.bmp", "BMP"),
        ("a.gif", "GIF"),
        ("MPX1009", "PNG"),
    ],
)
def test_every_format_opens_with_its_size(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / name, encoded(noise(), kind))
    assert image_size(path) == verify_image(path) == open_rgb(path).size == (60, 40)
    assert open_rgb(path).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_are_pillows(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    path = write(tmp_path / "a.jpg", encoded(noise(mode=mode), **options))
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_rgb(path)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_other_png_modes_become_rgb_as_in_pillow(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "a.png", encoded(noise(mode=mode), "PNG"))
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_rgb(path)), expected)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a", encoded(noise(), kind, exif=exif))
    expected = ImageOps.exif_transpose(Image.open(path))
    size = (40, 60) if orientation in (5, 6, 7, 8) else (60, 40)
    assert image_size(path) == verify_image(path) == expected.size == size
    np.testing.assert_array_equal(np.asarray(open_rgb(path)), np.asarray(expected))


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    data = encoded(noise())
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + 4) + b"Exif\0\0" + b"XXXX"
    path = write(tmp_path / "a.jpg", data[:2] + segment + data[2:])
    assert image_size(path) == verify_image(path) == (60, 40)


@pytest.mark.filterwarnings("error")
def test_exif_that_pillow_warns_of_is_no_noise(tmp_path: Path) -> None:
    cut = b"Exif\0\0II*\0\x08\0\0\0\x03\0"
    data = encoded(noise())
    path = write(tmp_path / "a.jpg", data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(cut)) + cut)
    path.write_bytes(path.read_bytes() + data[2:])
    assert image_size(path) == verify_image(path) == (60, 40)


@pytest.mark.parametrize("opener", OPENERS)
class TestRefused:
    def test_missing(self, tmp_path: Path, opener: Opener) -> None:
        assert reason(opener, tmp_path / "None.jpg") == "image-missing"

    def test_folder(self, tmp_path: Path, opener: Opener) -> None:
        (tmp_path / "a.jpg").mkdir()
        assert reason(opener, tmp_path / "a.jpg") == "image-missing"

    def test_below_a_file(self, tmp_path: Path, opener: Opener) -> None:
        write(tmp_path / "a", b"x")
        assert reason(opener, tmp_path / "a" / "b.jpg") == "image-missing"

    def test_loop_of_links(self, tmp_path: Path, opener: Opener) -> None:
        (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
        assert reason(opener, tmp_path / "a.jpg") == "image-missing"

    def test_empty(self, tmp_path: Path, opener: Opener) -> None:
        assert reason(opener, write(tmp_path / "a.jpg", b"")) == "image-empty"

    def test_text(self, tmp_path: Path, opener: Opener) -> None:
        path = write(tmp_path / "a.jpg", b"<html>404 Not Found</html>")
        assert reason(opener, path) == "image-damaged"

    def test_cut_in_the_header(self, tmp_path: Path, opener: Opener) -> None:
        path = write(tmp_path / "a.jpg", encoded(noise())[:100])
        assert reason(opener, path) == "image-truncated"

    def test_png_named_jpg(self, tmp_path: Path, opener: Opener) -> None:
        path = write(tmp_path / "a.jpg", encoded(noise(), "PNG"))
        assert reason(opener, path) == "wrong-format"

    def test_jpeg_named_png(self, tmp_path: Path, opener: Opener) -> None:
        path = write(tmp_path / "a.png", encoded(noise()))
        assert reason(opener, path) == "wrong-format"

    @pytest.mark.parametrize("side", [100_000, 12_000, 14_000])
    def test_huge_header(self, tmp_path: Path, opener: Opener, side: int) -> None:
        """A bomb of a few bytes; 12,000 is where Pillow warns, above 13,378 we refuse."""
        path = write(tmp_path / "a.png", png_header(side, side))
        expected = "image-too-large" if side * side > MAX_PIXELS else "image-truncated"
        if opener is image_size and expected == "image-truncated":
            assert image_size(path) == (side, side)
        else:
            assert reason(opener, path) in (expected, "image-damaged")

    def test_16_bit(self, tmp_path: Path, opener: Opener) -> None:
        deep = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))
        assert reason(opener, write(tmp_path / "a.png", encoded(deep, "PNG"))) == (
            "image-unsupported"
        )

    def test_postscript_is_never_run(self, tmp_path: Path, opener: Opener) -> None:
        path = write(tmp_path / "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        assert reason(opener, path) == "image-damaged"


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (head, body)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("opener", DECODERS)
class TestBrokenData:
    @pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
    def test_cut_off(self, tmp_path: Path, opener: Opener, keep: float) -> None:
        data = encoded(noise())
        path = write(tmp_path / "a.jpg", data[: int(len(data) * keep)])
        assert image_size(path) == (60, 40)
        assert reason(opener, path) == "image-truncated"

    def test_cut_off_png(self, tmp_path: Path, opener: Opener) -> None:
        data = encoded(noise(), "PNG")
        path = write(tmp_path / "a.png", data[: len(data) // 2])
        assert reason(opener, path) == "image-truncated"

    def test_hole_that_pillow_overlooks(self, tmp_path: Path, opener: Opener) -> None:
        data = bytearray(encoded(noise(600, 400)))
        middle = len(data) // 2
        data[middle : middle + 40] = bytes(40)
        path = write(tmp_path / "a.jpg", bytes(data))
        Image.open(path).load()
        assert reason(opener, path) == "image-damaged"

    def test_cut_off_and_closed(self, tmp_path: Path, opener: Opener) -> None:
        data = encoded(noise(600, 400))
        path = write(tmp_path / "a.jpg", data[: len(data) // 2] + b"\xff\xd9")
        Image.open(path).load()
        assert reason(opener, path) == "image-damaged"

    def test_wrong_checksum(self, tmp_path: Path, opener: Opener) -> None:
        data = bytearray(encoded(noise(), "PNG"))
        data[len(data) // 2] ^= 0xFF
        assert reason(opener, write(tmp_path / "a.png", bytes(data))) in (
            "image-damaged",
            "image-truncated",
        )


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", encoded(noise()) + b"camera maker's notes")
    assert verify_image(path) == (60, 40)


def test_decode_rgb_takes_bytes(tmp_path: Path) -> None:
    assert decode_rgb(encoded(noise()), tmp_path / "a.jpg").size == (60, 40)


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("image-empty", "a.jpg: 0 bytes")))
    assert (error.reason, error.detail, str(error)) == (
        "image-empty",
        "a.jpg: 0 bytes",
        "a.jpg: 0 bytes (image-empty)",
    )


class TestSafeFile:
    def test_stays_below(self, tmp_path: Path) -> None:
        assert safe_file(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"

    @pytest.mark.parametrize(
        "path", ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "~/a.jpg", "", "a\0.jpg", "C:\\a"]
    )
    def test_leaves(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(ImageError) as caught:
            safe_file(tmp_path, path)
        assert caught.value.reason == "unsafe-path"

    def test_link_out(self, tmp_path: Path) -> None:
        inner = tmp_path / "raw"
        inner.mkdir()
        os.symlink(tmp_path, inner / "out")
        with pytest.raises(ImageError, match="link that leads out"):
            safe_file(inner, "out/a.jpg")

    def test_link_inside_and_linked_root(self, tmp_path: Path) -> None:
        (tmp_path / "raw" / "a").mkdir(parents=True)
        os.symlink(tmp_path / "raw" / "a", tmp_path / "raw" / "b")
        os.symlink(tmp_path / "raw", tmp_path / "raw2")
        assert safe_file(tmp_path / "raw2", "b/c.jpg") == tmp_path / "raw2" / "b" / "c.jpg"
