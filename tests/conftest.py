"""Fixtures shared by the whole suite."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real samples, tokenizers and reference outputs beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ beside the checkout (real samples, goldens)")
    return SHARED
