"""What torch and safetensors raise on a full disk, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from adapt.errors import EnvironmentFault
from adapt.jsonl import disk_fault

# Their writers hide the errno in a text.
_SIGNS = ("inline_container", "PytorchStreamWriter", "iostream error", "IoError", "I/O error")


@contextmanager
def disk_faults_named(place: Path) -> Iterator[None]:
    """Raise EnvironmentFault for what goes wrong while the block writes `place`."""
    try:
        yield
    except OSError as error:
        raise disk_fault(error, place) from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        if any(sign in str(error) for sign in _SIGNS):
            raise EnvironmentFault(
                f"{place}: cannot be written, the disk is full or over quota "
                f"({str(error).splitlines()[0]}); free some space and --resume"
            ) from error
        raise
