"""Lets calls in until it is closed, and waits for those that are in.

Knows threads; knows no calls and nothing of what is closed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from m2m100_onnx.errors import ClosedError
from m2m100_onnx.process import renew_in_children

__all__ = ["Gate"]


class Gate:
    """Counts the calls that run, by thread; whoever is last after `close` locks up.

    Attributes:
        closed: whether calls are refused.
    """

    def __init__(self, name: str, lock_up: Callable[[], object]) -> None:
        """Opens the gate.

        Args:
            name: what is closed, for the error.
            lock_up: called once no call runs after `close`.
        """
        self.closed = False
        self._name, self._lock_up = name, lock_up
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Counts from zero: the parent's calls do not run in a forked process."""
        # Its lock can be taken twice by a thread: a signal handler may close what it interrupts.
        self._changed = threading.Condition()
        self._running = Counter[int]()

    def check(self) -> None:
        """Raises `ClosedError` if the gate is closed."""
        if self.closed:
            raise ClosedError(f"the {self._name} is closed")

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call while it runs.

        Raises:
            ClosedError: the gate is closed.
        """
        thread = threading.get_ident()
        with self._changed:
            self.check()
            self._running[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._running[thread] -= 1
                self._running += Counter()  # Drops threads without a call.
                self._changed.notify_all()
                last = self.closed and not self._running
            if last:
                self._lock_up()

    def close(self) -> None:
        """Refuses new calls, and waits for those that run in other threads.

        A call of this thread, which this interrupts, goes on; what is to be closed is closed when
        that call ends.
        """
        thread = threading.get_ident()
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: not self._running.keys() - {thread})
            last = not self._running
        if last:
            self._lock_up()
