"""Find the pictures that annotations name: beside the annotation file, or above it."""

from __future__ import annotations

import os
from pathlib import Path

from adapt.images import ImageError, image_size
from adapt.records import inside, is_safe_path


class PictureFinder:
    """Finds pictures below a root, and their sizes.

    Args:
        root: Folder that records' image paths start from.
        search: Whether a path may also start from the annotation file's folder, or from one
            between it and the root; the nearest that holds the picture counts.
    """

    def __init__(self, root: Path, *, search: bool) -> None:
        self._root = root
        self._search = search
        self._sizes: dict[str, tuple[int, int] | None] = {}

    def find(self, image: str, annotations: Path) -> str:
        """Return a picture's path from the root; as it is given when there is no such file."""
        if not self._search or not is_safe_path(image):
            return image
        for folder in annotations.parents:
            if not folder.is_relative_to(self._root):
                break
            # Unlike `Path.is_file`, this takes a name that is too long for the disk.
            if os.path.isfile(folder / image):
                return (folder / image).relative_to(self._root).as_posix()
        return image

    def size(self, path: str) -> tuple[int, int]:
        """Return width and height of a picture below the root, from its header.

        Raises:
            ImageError: It is missing, damaged, or leaves the root.
        """
        file = self._root / path
        if not is_safe_path(path) or not inside(self._root, file):
            raise ImageError("unsafe-path", f"{path}: expected a path below {self._root}")
        return image_size(file)

    def known_size(self, path: str) -> tuple[int, int] | None:
        """Return the size of a picture, None when it cannot be told; each is opened once."""
        if path not in self._sizes:
            try:
                self._sizes[path] = self.size(path)
            except ImageError:
                # Whoever converts the row meets the same error and counts it.
                self._sizes[path] = None
        return self._sizes[path]
