"""The error tree: what a user may meet, and the exit status it ends with.

    AdaptError               2   the user's mistake: one line, no traceback
    ├── UsageError           2   a wrong option, name or combination
    ├── SourceError          2   a raw file is missing or malformed
    ├── RecordError          2   a records file breaks the contract
    ├── RecipeError          2   a recipe is malformed or asks for the impossible
    ├── CheckpointError      2   a checkpoint is not what it should be
    ├── CheckFailed          1   checked and found wanting
    ├── TooManySkips         3   more rows lost than allowed
    └── EnvironmentFault     4   disk, port, a lost rank, a judge out of reach
        └── MissingExtra     4   an optional part of the installation is absent

Anything else that escapes is a bug: it keeps its traceback and exits 70 (`BUG`).
A message says where, what was found, what was expected, and what to do.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar

BUG = 70
"""Exit status of a failure that is no user's."""


class AdaptError(Exception):
    """A failure that the user can mend; the message is one clear line."""

    exit_status: ClassVar[int] = 2


class UsageError(AdaptError):
    """A wrong option, name or combination on the command line."""


class SourceError(AdaptError):
    """A raw file is missing or malformed."""


class RecordError(AdaptError):
    """A records file breaks the contract of `adapt.records`."""


class RecipeError(AdaptError):
    """A recipe is malformed or asks for the impossible."""


class CheckpointError(AdaptError):
    """A checkpoint is damaged, of another kind, or does not fit."""


class CheckFailed(AdaptError):
    """Something was checked and found wanting."""

    exit_status = 1


class TooManySkips(AdaptError):
    """More raw rows were lost than allowed."""

    exit_status = 3


class EnvironmentFault(AdaptError):
    """The machine or the network failed: disk, port, a lost rank, a judge."""

    exit_status = 4


class MissingExtra(EnvironmentFault):
    """An optional part of the installation is absent."""

    def __init__(self, command: str, extra: str) -> None:
        super().__init__(
            f"adapt {command} needs the [{extra}] extra; install it: "
            f"pip install 'adapt-vlm[{extra}]'"
        )


MOST_NAMES = 12
"""Names that a message lists at most."""
_BY_STATUS: dict[int, type[AdaptError]] = {
    kind.exit_status: kind for kind in (AdaptError, CheckFailed, TooManySkips, EnvironmentFault)
}


def error_of_status(status: int) -> type[AdaptError] | None:
    """Return the class of the failures that end a command with `status`, None when none do."""
    return _BY_STATUS.get(status)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` did you mean X?` for the closest known name, or the names, a few of many.

    >>> nearest("drivelmm", ["drivelm", "llava"])
    ' (did you mean drivelm?)'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known: {some(names, most=MOST_NAMES) or 'none'})"


def some(names: Iterable[str], most: int = 8) -> str:
    """Return the first names and how many more there are.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
