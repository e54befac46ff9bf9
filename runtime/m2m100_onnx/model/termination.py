"""Ends runs of graphs from another thread, between two nodes.

Knows onnxruntime's options of a run; knows no clock and no call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from m2m100_onnx.model.support import ort

__all__ = ["TerminatedError", "Termination"]


class TerminatedError(Exception):
    """A run was ended; whoever made the `Termination` catches it."""


class _Thread(threading.local):
    """What ends the runs of a thread."""

    termination: Termination | None = None


_THREAD = _Thread()


class Termination:
    """Ends the runs of one thread, the one that is running and those that follow.

    termination = Termination()
    threading.Timer(1.0, termination.end).start()
    with termination.of_this_thread():
        run(session, binding)  # raises TerminatedError after a second
    """

    def __init__(self) -> None:
        # Options for runs of all nodes, and of those alone that a bound output needs.
        self._all, self._needed = ort.RunOptions(), ort.RunOptions()
        self._needed.only_execute_path_to_fetches = True

    def end(self) -> None:
        """Ends the runs; a second time has no effect."""
        self._all.terminate = self._needed.terminate = True

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return bool(self._all.terminate)

    @contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Makes the runs of this thread, while the context lasts, those that `end` ends."""
        before = _THREAD.termination
        _THREAD.termination = self
        try:
            yield
        finally:
            _THREAD.termination = before

    @staticmethod
    def current() -> Termination | None:
        """Returns what ends the runs of this thread; None if nothing does."""
        return _THREAD.termination

    def options(self, *, only: bool) -> ort.RunOptions:
        """Returns the options of a run.

        Args:
            only: whether nodes are left out that no bound output needs.
        """
        return self._needed if only else self._all
