"""Interrupts a function at a moment of its own, as a signal may at any time."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any


def interrupted_at(
    moment: int, function: Callable[[], Any], files: Collection[str], number: signal.Signals
) -> bool:
    """Calls a function, and raises a signal at one of the moments that this thread comes by.

    Python looks for signals when a function begins and when a call of C has returned. Between other
    instructions, such as the last of a `with` block and the release of its lock, it does not look.

    Args:
        moment: how many of these moments go before, in functions of `files`.
        function: what is called.
        files: the names of files.
        number: the signal, which has a handler.

    Returns:
        Whether there were that many.
    """
    left = moment

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        # What is raised in a generator that is being closed goes to `sys.unraisablehook`.
        generator = bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        if left < 0 or event not in ("call", "c_return") or (event == "call" and generator):
            return
        if Path(frame.f_code.co_filename).name in files:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                signal.raise_signal(number)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(before)
    return left < 0


def raise_in_handler(error: BaseException) -> None:
    """Raises an exception as the handler of a signal does, between two lines of the caller."""

    def handler(_: int, __: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
