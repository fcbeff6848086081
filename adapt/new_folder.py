"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapt.errors import CheckpointError
from adapt.jsonl import disk_fault


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`; it becomes `out` when the block ends well.

    Otherwise nothing is left, nor of the folders above that had to be made.

    Raises:
        CheckpointError: `out` is there already and holds something, or cannot be replaced.
        EnvironmentFault: The folder cannot be made.
    """
    # Behind any link: the link stays, and what it points to is made or replaced.
    place = Path(os.path.realpath(out))
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CheckpointError(f"{out}: is there already; remove it or give another --out")
    if place == Path.cwd() or place.is_mount():
        raise CheckpointError(
            f"{out}: is the current folder or a mount point, which cannot be replaced; give a "
            f"folder in it: --out {out / 'model'}"
        )
    absent = [folder for folder in place.parents if not folder.exists()]
    temporary = None
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(
                tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp")
            )
            temporary.chmod(0o755)
        except OSError as error:
            raise disk_fault(error, out) from error
        yield temporary
        try:
            # Renaming onto an empty folder is allowed, and the only replacement that is.
            temporary.rename(place)
        except OSError as error:
            raise disk_fault(error, out) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
        remove_empty(absent)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as long as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
