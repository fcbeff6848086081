"""One process at a time writes a place: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapt.errors import UsageError
from adapt.jsonl import disk_fault
from adapt.new_folder import remove_empty

_VANISHED = (FileNotFoundError, FileExistsError)
_MOST_VANISHED = 100
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def one_writer(lock: Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock file, which is there for as long; the folders it needs are made.

    A file, since network file systems lock no folders. Where a file system locks nothing at all,
    a notice says so, and the block runs without.

    Args:
        lock: The file; nothing else is in it.
        busy: What to say when another process holds it; None waits for the other.

    Raises:
        UsageError: Another process holds it.
        EnvironmentFault: The file cannot be made.
    """
    absent = [folder for folder in lock.parents if not folder.exists()]
    try:
        handle = _take(lock, busy)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
            os.close(handle)
    finally:
        remove_empty(absent)


def _take(lock: Path, busy: str | None) -> int:
    """Return the descriptor that holds the lock."""
    vanished = 0
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            # The one before may have removed its folder just now: not again and again, though.
            vanished += 1
            if not isinstance(error, _VANISHED) or vanished > _MOST_VANISHED:
                raise disk_fault(error, lock.parent) from error
            continue
        try:
            if _holds(handle, lock, busy):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _holds(handle: int, lock: Path, busy: str | None) -> bool:
    """Lock an open file; return False when the one before has removed it meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False
    except BlockingIOError as error:
        raise UsageError(busy) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise disk_fault(error, lock) from error
        notice = "its file system has no locks; make sure that nothing else writes here"
        print(f"adapt: {lock.parent}: {notice}", file=sys.stderr)
        return True
