"""SIGTERM and SIGHUP end the command as SIGINT does: what was opened is cleaned up on the way out.

By default these two kill a process on the spot. `docker stop`, Kubernetes and systemd send SIGTERM.
A terminal or an ssh session that is lost sends SIGHUP.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Terminated", "terminable"]

_NAMES = ("SIGTERM", "SIGHUP")
_QUIET = 5.0
"""Seconds after a signal in which others are ignored: cleaning up must not be interrupted. The
kernel and the shell both send SIGHUP when a terminal is lost."""


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        status: the exit status, as a shell reports the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


class Caught:
    """The signal that came, if one did.

    Attributes:
        status: its exit status, else None.
    """

    status: int | None = None


@contextmanager
def terminable() -> Iterator[Caught]:
    """Makes SIGTERM and SIGHUP raise `Terminated` in the main thread, while the block runs.

    SIGINT raises `KeyboardInterrupt` as ever, and is noted like the others. A signal that is
    ignored stays ignored, as `nohup` wants it, and one that the program handles stays its own.
    """
    caught = Caught()
    last = float("-inf")

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _QUIET:
            last = now
            error = Terminated(number)
            caught.status = error.status
            raise error

    def interrupt(number: int, _: FrameType | None) -> None:
        caught.status = caught.status or 128 + number
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
