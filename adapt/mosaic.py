"""Mosaics: several camera views in one labelled picture, made once a frame.

    view 1600x900 --bicubic--> cell 896x448 --camera's name, magenta--> 2688x896 --> JPEG

The result is that of Pillow's bicubic resize and `ImageDraw.text`. nuScenes views take a faster
road to the same picture (over 52 dB): libjpeg-turbo decodes, and the bicubic filter is replaced by

    blur [1 2 1]/4 both ways  ->  linear resize  ->  out + 3/8 * (out - blurred out)

At these sizes that is Pillow's filter within a hundredth: halfway between two source pixels it
weighs them .434 .111 -.035 -.012 outwards, bicubic .434 .113 -.035 -.012. A linear resize alone
falls to 47 dB at sharp edges. The bytes do not depend on the number of workers or threads; on
another kind of processor a value may be rounded otherwise. Whatever is not such a JPEG (another
size, turned by EXIF, grey, PNG) goes through Pillow itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from adapt.coords import NUSCENES, MosaicLayout
from adapt.images import decode_rgb, is_jpeg_name, read_image
from adapt.resources import ROOT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    """[height, width, 3], RGB."""

LABEL_FONT = ROOT / "fonts" / "DejaVuSans-Bold.ttf"
LABEL_PX = 50
LABEL_COLOUR = (255, 0, 255)
JPEG_QUALITY = 90

FAST_VIEW = (1600, 900)
FAST_CELL = (896, 448)
SHARPENING = 0.375


_NOTES = tuple(bytes([code]) for code in (*range(0xE0, 0xF0), 0xFE))


@dataclass(frozen=True, slots=True)
class _Label:
    """A camera's name, drawn once.

    Args:
        place: Rows and columns of the cell that it covers.
        inside: 255 for each pixel of the place that it covers wholly, [rows, columns] uint8.
        plain: The place in the label's colour alone, [rows, columns, 3] uint8.
        edge: Rows and columns of the place that it covers partly.
        kept: Share of what is below, of 255, for each pixel of the edge, [pixels, 1] uint16.
        added: Share of the colour, and a half for rounding, [pixels, 3] uint16.
    """

    place: tuple[slice, slice]
    inside: Any
    plain: Any
    edge: Any
    kept: Any
    added: Any


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A picture to be made from several views (`adapt.records.Picture`).

    Args:
        views: (camera, file) of every camera in the layout.
        file: The file to make, relative to the dataset's root.
        layout: Where the views stand, and in which size.
        quality: JPEG quality, 1 to 100.
    """

    views: tuple[tuple[str, Path], ...]
    file: str
    layout: MosaicLayout = NUSCENES
    quality: int = JPEG_QUALITY

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.layout.width, self.layout.height

    def make(self) -> bytes:
        """Return the mosaic as a JPEG (4:2:0).

        Raises:
            adapt.images.ImageError: A view is missing or damaged.
        """
        import simplejpeg

        canvas = _scratch("canvas", self.size)
        self._paint(canvas)
        encoded: bytes = simplejpeg.encode_jpeg(canvas, self.quality, "RGB", "420")
        return encoded

    def pixels(self) -> Pixels:
        """Return the mosaic before it is encoded.

        Raises:
            adapt.images.ImageError: A view is missing or damaged.
        """
        canvas = _scratch("canvas", self.size)
        self._paint(canvas)
        return canvas.copy()

    def _paint(self, canvas: Pixels) -> None:
        files = dict(self.views)
        width, height = self.layout.cell_width, self.layout.cell_height
        canvas.fill(0)
        for row in self.layout.cameras:
            for camera in row:
                left, top = self.layout.origin(camera)
                cell = canvas[top : top + height, left : left + width]
                draw_view(files[camera], cell)
                if self.layout.label:
                    draw_label(camera, cell)


def draw_view(path: Path, cell: Pixels) -> None:
    """Fill a cell with a view, resized to it whatever the view's proportions.

    Raises:
        adapt.images.ImageError: The view is missing or damaged.
    """
    import numpy as np

    data = read_image(path)
    if _draw_fast(data, path, cell):
        return
    image = decode_rgb(data, path)
    height, width = cell.shape[:2]
    cell[:] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def draw_label(text: str, cell: Pixels) -> None:
    """Write a camera's name into the top-left corner of its cell, as `ImageDraw.text` does."""
    label = _label(text, cell.shape[1], cell.shape[0])
    corner = cell[label.place]
    # Pillow's own blending: a division by 255, rounded, without dividing.
    blended = corner[label.edge] * label.kept + label.added
    corner[label.edge] = ((blended >> 8) + blended) >> 8
    _cv2().copyTo(label.plain, label.inside, corner)


def _draw_fast(data: bytes, path: Path, cell: Pixels) -> bool:
    """Fill a cell with a nuScenes view; return False for anything else, and for damaged data."""
    import simplejpeg

    cell_size = cell.shape[1], cell.shape[0]
    if cell_size != FAST_CELL or not _is_plain_jpeg(data) or not is_jpeg_name(path):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != FAST_VIEW or colours != "YCbCr":
            return False
        # Cheap chroma upsampling cannot be seen after halving: it costs 0.1 dB.
        buffer = _scratch("view", FAST_VIEW)
        view = simplejpeg.decode_jpeg(data, "RGB", fastupsample=True, buffer=buffer)
    except ValueError:
        # The slower road decodes again and says what is wrong.
        return False
    _halve(view, cell)
    return True


def _halve(view: Pixels, cell: Pixels) -> None:
    """Resize a view of about twice the cell's size into the cell; see the module docstring.

    The view's pixels are used up: blurring them in place spares the memory's bandwidth.
    """
    cv2 = _cv2()
    size = cell.shape[1], cell.shape[0]
    cv2.GaussianBlur(view, (3, 3), 0, dst=view)
    small = cv2.resize(view, size, dst=_scratch("small", size), interpolation=cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(small, (3, 3), 0, dst=_scratch("soft", size))
    cv2.addWeighted(small, 1 + SHARPENING, soft, -SHARPENING, 0, dst=cell)


def _is_plain_jpeg(data: bytes) -> bool:
    """Return whether the data are a JPEG without EXIF, which could turn the picture."""
    if not data.startswith(b"\xff\xd8"):
        return False
    start = 2
    # Application segments and comments (FF, E0 to EF or FE, length) come before the picture's.
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] in _NOTES:
        if data.startswith(b"Exif\0", start + 4):
            return False
        start += 2 + int.from_bytes(data[start + 2 : start + 4])
    return True


@cache
def _label(text: str, width: int, height: int) -> _Label:
    import numpy as np

    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=_font())
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    cover = np.asarray(mask)[top:bottom, left:right]
    edge = np.nonzero((cover > 0) & (cover < 255))
    shares = cover[edge].astype(np.uint16)[:, np.newaxis]
    return _Label(
        place=(slice(top, bottom), slice(left, right)),
        inside=np.where(cover == 255, np.uint8(255), np.uint8(0)),
        plain=np.full((*cover.shape, 3), LABEL_COLOUR, np.uint8),
        edge=edge,
        kept=255 - shares,
        added=shares * np.array(LABEL_COLOUR, np.uint16) + np.uint16(128),
    )


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(LABEL_FONT), LABEL_PX)


@cache
def _cv2() -> Any:
    import cv2

    # Frames are spread over processes; threads inside each would only fight over the cores.
    cv2.setNumThreads(1)
    return cv2


_LOCAL = threading.local()


def _scratch(use: str, size: tuple[int, int]) -> Pixels:
    """Return a picture to draw into, the same one for each use, size and thread.

    Args:
        use: Its name.
        size: Width and height in pixels.
    """
    import numpy as np

    pictures: dict[tuple[str, tuple[int, int]], Pixels] = _LOCAL.__dict__.setdefault("pictures", {})
    if (use, size) not in pictures:
        pictures[use, size] = np.empty((size[1], size[0], 3), np.uint8)
    return pictures[use, size]
