"""What is printed when nobody reads it any more, as in `adapt train ... | head`: nothing.

The work goes on: a reader that has left is no reason to stop it.
"""

from __future__ import annotations

import os
import sys
from typing import Any


class _Outliving:
    """A text stream that prints into nothing once its reader has left."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, if there is still a reader."""
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, if there is still a reader."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def outlive_readers() -> None:
    """Make stdout and stderr of this process outlive their readers; call it once, at its start."""
    sys.stdout, sys.stderr = _Outliving(sys.stdout), _Outliving(sys.stderr)
