"""A folder that appears whole or not at all."""

from __future__ import annotations

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

    Raises:
        CheckpointError: `out` is there already and holds something.
        EnvironmentFault: The folder cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already; remove it or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise disk_fault(error, out) from error
    try:
        temporary.chmod(0o755)
        yield temporary
        # Renaming onto an empty folder is allowed, and the only replacement that is.
        temporary.rename(out)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
