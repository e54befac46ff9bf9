"""What callers of a queue wait for: sentences, their deadline, and the future of their results.

Knows sentences and futures; knows no threads and no batches.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.options import Settings

__all__ = ["Request", "Ticket", "fail_all"]


@dataclass(eq=False)
class Request:
    """Sentences that one caller waits for.

    Attributes:
        sentences: what is to be translated; their positions are the keys of the result.
        settings: their options.
        stop: the deadline and the cancellation of the request.
        priority: larger numbers go first.
        future: gets the results by position, or the error. Cancelling it cancels the work.
        waited: seconds until the first sentence ran; None before.
    """

    sentences: Sequence[Sentence]
    settings: Settings
    stop: Stop = field(default_factory=Stop)
    priority: int = 0
    future: Future[dict[int, Any]] = field(default_factory=Future)
    waited: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._found: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the request was made."""
        return time.monotonic() - self._began

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the rest: cancelled, too late, or failed."""
        return self.future.done() or self.stop.reached

    def begin(self) -> None:
        """Notes that a sentence is about to run."""
        if self.waited is None:
            self.waited = self.seconds

    def put(self, sentence: Sentence, result: Any) -> None:
        """Keeps a result; the last one completes the future."""
        self._found[sentence.position] = result
        if len(self._found) == len(self.sentences):
            self._settle(lambda: self.future.set_result(dict(self._found)))

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error, unless it has ended."""
        self._settle(lambda: self.future.set_exception(error))

    def expire(self) -> None:
        """Ends a request that is gone."""
        if not self.future.done():
            self.fail(self.stop.error(self._found))

    def _settle(self, settle: Callable[[], None]) -> None:
        # The future never says that it runs, so its owner may cancel it until it is done.
        try:
            settle()
        except Exception:
            if not self.future.done():
                raise


@dataclass(frozen=True, eq=False)
class Ticket:
    """A sentence of a request, while it runs."""

    request: Request
    sentence: Sentence


def fail_all(requests: Iterable[Request], error: BaseException) -> None:
    """Ends requests with an error, each with one of its own, since raising one changes it."""
    for number, request in enumerate(requests):
        request.fail(error if number == 0 else copy.copy(error))
