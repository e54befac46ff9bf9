"""A lock between processes, which the system releases when its holder ends.

Knows files and the calls of two systems; knows no cache.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2m100_onnx.process import raised_by_signal_handler, tolerate

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK", "file_lock"]

LOCK = ".lock-"
"""The first characters of a lock's name."""
_PAUSE = 0.05


@contextmanager
def file_lock(path: Path, patience: float) -> Iterator[bool]:
    """Holds a lock while the block runs, if it is free in time.

    A file system without locks counts as free: the lock saves work, and nothing depends on it.

    Args:
        path: a file of its own, which is made and deleted.
        patience: seconds to wait for another holder.

    Yields:
        Whether the lock is held.

    Raises:
        OSError: the file cannot be made.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        held = _acquire(number, patience)
        try:
            yield held
        finally:
            if held:
                # Whoever waits holds the deleted file next, and finds the work done. Windows keeps
                # files that are open.
                with tolerate(OSError):
                    path.unlink()
                # A child that was forked meanwhile has the file open too.
                _release(number)
    finally:
        os.close(number)


def _acquire(number: int, patience: float) -> bool:
    """Locks an open file; says whether it was free in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            _lock(number)
            return True
        except OSError as error:
            if raised_by_signal_handler(error):
                raise
            if not isinstance(error, (BlockingIOError, PermissionError)):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)


if sys.platform == "win32":

    def _lock(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)

    def _release(number: int) -> None:
        with tolerate(OSError):
            msvcrt.locking(number, msvcrt.LK_UNLCK, 1)

else:

    def _lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(number: int) -> None:
        with tolerate(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
