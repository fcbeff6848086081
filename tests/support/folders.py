"""What lies in a folder."""

from pathlib import Path


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
