"""Open pictures safely: existence, format, size and the whole of the data, then pixels.

A picture is refused with a reason that can be counted:

    image-missing       no such file, or a folder        image-truncated    the data end early
    image-empty         a file of 0 bytes                image-damaged      the data are broken
    image-too-large     more than MAX_PIXELS             wrong-format       a PNG named .jpg
    image-unsupported   16-bit or floating-point pixels  unsafe-path        leaves its folder

Sizes and pixels are those after EXIF rotation: as people, annotators and the model see them.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from adapt.errors import AdaptError
from adapt.records import inside, is_safe_path

MAX_PIXELS = 178_956_970
"""Largest picture that is opened, in pixels: 512 MB of RGB, Pillow's own hard limit."""

JPEG_FORMATS = ("JPEG", "MPO")
_EXTENSIONS = {
    ".jpg": JPEG_FORMATS,
    ".jpeg": JPEG_FORMATS,
    ".jpe": JPEG_FORMATS,
    ".jfif": JPEG_FORMATS,
    ".png": ("PNG",),
    ".webp": ("WEBP",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
}
_FORMATS = tuple(dict.fromkeys(names[0] for names in _EXTENSIONS.values()))
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION_TAG = 0x0112
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


class ImageError(AdaptError):
    """A picture cannot be used.

    Args:
        reason: A short key to count by; see the module docstring.
        detail: Which file, what was found, what was expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """Return the detail, which is one clear line on its own."""
        return f"{self.detail} ({self.reason})"


def safe_file(root: Path, path: str) -> Path:
    """Return the file that an annotation's relative path names below `root`.

    Raises:
        ImageError: The path is absolute, climbs with `..`, or follows a link out of `root`.
    """
    if not is_safe_path(path):
        raise ImageError("unsafe-path", f"{path!r}: expected a relative path without ..")
    file = root / path
    if not inside(root, file):
        raise ImageError("unsafe-path", f"{path}: is a link that leads out of {root}")
    return file


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height after EXIF rotation, from the header alone.

    Raises:
        ImageError: It is missing, no picture, too large or of another format than its name says.
    """
    _require_content(path)
    with path.open("rb") as file:
        return _upright_size(_open(file, path))


def verify_image(path: Path) -> tuple[int, int]:
    """Return width and height after EXIF rotation, having decoded the whole picture.

    Raises:
        ImageError: It cannot be used; see the module docstring for the reasons.
    """
    data = read_image(path)
    image = _open(io.BytesIO(data), path)
    size = _upright_size(image)
    _pixels(image, data, path)
    return size


def open_rgb(path: Path) -> Image.Image:
    """Return the picture as RGB, upright, fully decoded.

    Raises:
        ImageError: It cannot be used; see the module docstring for the reasons.
    """
    return decode_rgb(read_image(path), path)


def decode_rgb(data: bytes, path: Path) -> Image.Image:
    """Return an encoded picture as RGB, upright, fully decoded; transparency is left out.

    Args:
        data: The encoded picture.
        path: Its file, for its extension and for messages.

    Raises:
        ImageError: It cannot be used; see the module docstring for the reasons.
    """
    image = _open(io.BytesIO(data), path)
    rotation = _ROTATIONS.get(_orientation(image))
    pixels = _pixels(image, data, path)
    upright = pixels if rotation is None else pixels.transpose(rotation)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def read_image(path: Path) -> bytes:
    """Return the bytes of a picture's file.

    Raises:
        ImageError: It is missing, empty or cannot be read.
    """
    _require_content(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError("image-missing", f"{path}: cannot be read: {error.strerror}") from error


def is_jpeg_name(path: Path) -> bool:
    """Return whether a file's name allows JPEG data."""
    return "JPEG" in _EXTENSIONS.get(path.suffix.lower(), _FORMATS)


def _require_content(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImageError("image-missing", f"{path}: {str(error.strerror).lower()}") from error
    if path.is_dir():
        raise ImageError("image-missing", f"{path}: is a folder, expected a picture")
    if not size:
        raise ImageError("image-empty", f"{path}: the file has 0 bytes")


def _open(file: io.BytesIO | io.BufferedReader, path: Path) -> Image.Image:
    """Open a picture lazily and check format, size and pixel type from its header."""
    try:
        with warnings.catch_warnings():
            # Of large pictures and odd metadata; what matters is checked below.
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise ImageError(
            "image-damaged", f"{path}: no picture in a known format ({known})"
        ) from error
    except _DECODING_ERRORS as error:
        raise _broken(path, str(error)) from error
    expected = _EXTENSIONS.get(path.suffix.lower())
    if expected and image.format not in expected:
        raise ImageError("wrong-format", f"{path}: holds {image.format} data, not {expected[0]}")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width}x{image.height} px")
    if image.mode in _DEEP_MODES:
        raise ImageError(
            "image-unsupported",
            f"{path}: has pixels of type {image.mode}; scale them to 8 bits a channel first",
        )
    return image


def _pixels(image: Image.Image, data: bytes, path: Path) -> Image.Image:
    """Decode an opened picture completely."""
    if image.format in JPEG_FORMATS and image.mode in ("RGB", "L"):
        return _jpeg_pixels(image.mode, data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.format == "PNG":
                # Decoding stops at the last row, before the checksums that tell of damage.
                Image.open(io.BytesIO(data), formats=("PNG",)).verify()
            image.load()
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except _DECODING_ERRORS as error:
        raise _broken(path, str(error)) from error
    return image


def _jpeg_pixels(mode: str, data: bytes, path: Path) -> Image.Image:
    """Decode a JPEG with the same library as Pillow, but pass on its warnings.

    Pillow overlooks data that are broken or cut off inside, and paints the rest grey.
    """
    import simplejpeg

    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB")
    except ValueError as error:
        raise _broken(path, str(error)) from error
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODING_ERRORS:
        # Broken metadata say nothing about a rotation; the pixels are checked on their own.
        return 1
    return value if isinstance(value, int) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    sideways = _orientation(image) in _SIDEWAYS
    return (image.height, image.width) if sideways else (image.width, image.height)


def _too_large(path: Path, found: str) -> ImageError:
    return ImageError("image-too-large", f"{path}: {found}; at most {MAX_PIXELS} px are opened")


def _broken(path: Path, message: str) -> ImageError:
    early = any(word in message.lower() for word in ("truncated", "premature end of jpeg file"))
    reason = "image-truncated" if early else "image-damaged"
    return ImageError(reason, f"{path}: {message or 'broken data'}; fetch the file again")
