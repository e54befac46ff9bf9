"""Ends a call early: at a deadline, or when another thread cancels it.

Knows clocks and flags; knows no searches. A search asks between two steps; what takes longer than a
step, such as reading a batch of sources, is ended between two nodes of its graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn, TypeVar

from m2m100_onnx.errors import Cancelled, DeadlineExceeded, InvalidInputError, StoppedError
from m2m100_onnx.model.termination import TerminatedError, Termination

__all__ = ["Cancellation", "Stop"]

_T = TypeVar("_T")


class Cancellation:
    """Cancels the calls that it was given to, from any thread.

        cancellation = Cancellation()
        threading.Timer(1.0, cancellation.cancel).start()
        translator.translate(text, source_lang="en", target_lang="de", cancellation=cancellation)

    It stays cancelled, so a new call needs a new one.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        # No lock: a signal's handler may cancel in the middle of anything.
        self._ends: set[Callable[[], object]] = set()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Cancellation reaches the calls of its own process; it has no copies")

    def cancel(self) -> None:
        """Makes the calls raise `Cancelled` at once, or nearly; a second time has no effect."""
        self._event.set()
        for end in list(self._ends):
            end()

    @contextmanager
    def calling(self, end: Callable[[], object]) -> Iterator[None]:
        """Has `cancel` call a function while the context lasts; at once if it was called before."""
        self._ends.add(end)
        try:
            if self.cancelled:
                end()
            yield
        finally:
            self._ends.discard(end)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()


class Stop:
    """What one call asks between two steps; once reached, it stays reached."""

    def __init__(
        self, timeout: float | None = None, cancellation: Cancellation | None = None
    ) -> None:
        """Starts the clock.

        Args:
            timeout: seconds from now, None for no limit.
            cancellation: what other threads cancel the call with.

        Raises:
            InvalidInputError: `cancellation` is something else.
        """
        if not isinstance(cancellation, (Cancellation, type(None))):
            kind = "the class" if cancellation is Cancellation else type(cancellation).__name__
            raise InvalidInputError(f"cancellation: expected a Cancellation, found {kind}")
        self._timeout, self._cancellation = timeout, cancellation
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._ended = False

    @property
    def reached(self) -> bool:
        """Whether the call must end."""
        if self._ended or (self._cancellation is not None and self._cancellation.cancelled):
            return True
        return self._deadline is not None and time.monotonic() >= self._deadline

    @contextmanager
    def ending_runs(self) -> Iterator[None]:
        """Ends what graphs run in this thread as soon as the stop is reached, and so the context.

        What was about to be done then is left undone, and no error says so: the caller sees that
        something is missing, and raises `error`.
        """
        if self._deadline is None and self._cancellation is None:
            yield
            return
        termination = Termination()

        def end() -> None:
            self._ended = True  # A timer may be a moment early.
            termination.end()

        with ExitStack() as stack:
            if self._cancellation is not None:
                stack.enter_context(self._cancellation.calling(end))
            if self._deadline is not None:
                timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), end)
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
            stack.enter_context(termination.of_this_thread())
            with suppress(TerminatedError):
                yield

    def during(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yields items until the call must end."""
        for item in items:
            if self.reached:
                return
            yield item

    def complete(self, found: Mapping[int, _T], count: int) -> list[_T]:
        """Returns what was found for each of `count` texts.

        Raises:
            StoppedError: one is missing, since the call had to end.
        """
        if len(found) < count:
            raise self.error(found)
        return [found[n] for n in range(count)]

    def error(self, finished: Mapping[int, Any]) -> StoppedError:
        """Returns the error to raise when the stop is reached.

        Args:
            finished: what the call has finished, by position.
        """
        if self._cancellation is not None and self._cancellation.cancelled:
            return Cancelled("the call was cancelled", finished)
        return DeadlineExceeded(f"timeout: {self._timeout:g} s are over", finished)
