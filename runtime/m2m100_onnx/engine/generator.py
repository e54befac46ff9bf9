"""Runs searches on a model: a batch of token ids becomes hypotheses.

Knows how many threads a batch is worth; knows no text, and leaves the search to `search/`. The
hypotheses of a sentence are the same whichever thread computes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.process import (
    raised_by_signal_handler,
    renew_in_children,
    side_by_side,
)
from m2m100_onnx.search.beam import BeamSearch
from m2m100_onnx.search.demands import Demands
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.sampling import SamplingSearch
from m2m100_onnx.search.state import DecoderState, Float32Array, Int64Array, Ranking

__all__ = ["Generator", "Search", "SearchBatch", "Searchable", "search_of"]

Search: TypeAlias = BeamSearch | SamplingSearch


class SearchBatch(Protocol):
    """What a search starts from, for a number of texts."""

    @property
    def arrays(self) -> tuple[Int64Array, ...]:
        """What `begin` of the model takes."""
        ...

    @property
    def prompt(self) -> Int64Array:
        """`(B, P)` first tokens of each sequence."""
        ...

    @property
    def given(self) -> int:
        """Tokens of the prompt that are not in the length of a sequence."""
        ...

    @property
    def demands(self) -> Demands:
        """What the texts ask of a search beyond its options."""
        ...

    @property
    def keys(self) -> list[list[int]]:
        """What tells the texts apart: their tokens, and what else a result depends on."""
        ...

    def part(self, number: int, parts: int, pad_id: int, /) -> SearchBatch:
        """Returns every `parts`-th text from `number` on."""
        ...

    def __len__(self) -> int: ...


class Searchable(Protocol):
    """A model that searches run on."""

    @property
    def bundle(self) -> Any:
        """The opened bundle, whose config names the tokens of padding and of the end."""
        ...

    @property
    def threads(self) -> int:
        """Number of threads of a run."""
        ...

    @property
    def rows_a_part(self) -> float:
        """Rows a thread from which on each thread computes a part of the batch on its own."""
        ...

    @property
    def can_run_serially(self) -> bool:
        """Whether runs can stay in their callers' threads."""
        ...

    @property
    def begin(self) -> Callable[..., DecoderState]:
        """Feeds the arrays of a batch, ready for a search."""
        ...


_M = TypeVar("_M", bound=Searchable)


class _Call:
    """A call that is running."""


class _Together:
    """Ends the parts of a call together: one that fails, or is interrupted, ends the others."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self._failed = False

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._failed = self._failed or kind is not None

    @property
    def over(self) -> bool:
        """Whether no part is to make another step."""
        return self._failed or self.stop.reached


class Generator(Generic[_M]):
    """Runs searches on a model; many threads may use one at the same time."""

    def __init__(self, model: _M) -> None:
        """Takes the model; no graph is opened."""
        self.model = model
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Counts from zero: the parent's calls do not run in a forked process."""
        self._lock = threading.Lock()
        self._running = WeakSet[_Call]()

    def run(
        self, batch: SearchBatch, options: SearchOptions, stop: Stop
    ) -> list[list[Hypothesis] | None]:
        """Returns the hypotheses of every sentence; None for those that `stop` left unfinished.

        A call that has the model to itself uses all threads: for the whole batch, or for parts of a
        large one side by side. A call that finds another one running uses one thread.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed, or memory is exhausted.
            InvalidInputError: shapes or ids do not fit together, or scores are NaN.
        """
        with self._counted() as others:
            found: list[list[Hypothesis] | None] = [None] * len(batch)
            if stop.reached:  # Before a graph is opened.
                return found
            parts = 1 if others else self._parts(len(batch), options.rows)
            serial = (parts > 1 or others > 0) and self.model.can_run_serially
            together = _Together(stop)
            each = (batch.part(n, parts, self._pad) for n in range(parts))
            runs = [partial(self._search, part, options, together, serial) for part in each]
            with together:  # An interrupt may come while this thread waits for the others.
                for part, some in enumerate(side_by_side(*runs)):
                    found[part::parts] = some
            return found

    def next_tokens(
        self, batch: SearchBatch, count: int, stop: Stop
    ) -> tuple[Int64Array, Float32Array] | None:
        """Returns the likeliest next tokens of one sentence, best first, with log-probabilities.

        It is None where `stop` was reached before.

        Raises:
            M2M100Error: those of `stream`.
        """
        with self._counted() as others, stop.ending_runs():
            state = self._begin_alone(batch, others)
            ranked = state.best(Ranking(count=count, renormalized=True))
            return ranked.tokens[0].copy(), ranked.scores[0].copy()
        return None

    def stream(
        self, batch: SearchBatch, options: SearchOptions, stop: Stop
    ) -> Iterator[tuple[int, ...]]:
        """Searches one sentence; yields the tokens that are settled after each step.

        The last ones are those of the best hypothesis, if there is one. Nothing comes after `stop`
        is reached. The stream counts as a call while it computes, and not while its caller has the
        word.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed, or memory is exhausted.
            InvalidInputError: shapes or ids do not fit together, or scores are NaN.
        """
        eos_id = self.model.bundle.config.eos_token_id
        search = None
        with self._counted() as others, stop.ending_runs():
            search = search_of(self._begin_alone(batch, others), batch, eos_id, options)
        if search is None:
            return
        while search.live and not stop.reached:
            with self._counted():
                search.step()
            if search.live:
                yield search.settled(0)
        if not search.live:
            # Terms may have kept every sequence from its end.
            yield from (hypothesis.tokens for hypothesis in search.hypotheses(0)[:1])

    def _begin_alone(self, batch: SearchBatch, others: int) -> DecoderState:
        """Feeds the arrays of a batch of one part, in one thread if other calls run."""
        serial = others > 0 and self.model.can_run_serially
        return self.model.begin(*batch.arrays, serial=serial)

    @property
    def _pad(self) -> int:
        return int(self.model.bundle.config.pad_token_id)

    def _search(
        self, batch: SearchBatch, options: SearchOptions, together: _Together, serial: bool
    ) -> list[list[Hypothesis] | None]:
        """Searches until all sentences have ended, or the parts are to end."""
        search = None
        with together, together.stop.ending_runs():
            eos_id = self.model.bundle.config.eos_token_id
            state = self.model.begin(*batch.arrays, serial=serial)
            search = search_of(state, batch, eos_id, options)
            while search.live and not together.over:
                search.step()
        if search is None:
            return [None] * len(batch)
        live = set(search.live)
        return [None if n in live else search.hypotheses(n) for n in range(len(batch))]

    def _parts(self, sentences: int, rows: int) -> int:
        """Returns the number of parts of a batch: one per thread, or one."""
        threads = self.model.threads
        if sentences < threads or sentences * rows < threads * self.model.rows_a_part:
            return 1
        return threads if self.model.can_run_serially else 1

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """Counts a call while it runs; yields the number of others that run.

        Raises:
            InferenceError: memory was exhausted.
        """
        call = _Call()
        with self._lock:
            others = len(self._running)
            self._running.add(call)
        try:
            yield others
        except MemoryError as error:
            if raised_by_signal_handler(error):
                raise
            raise InferenceError(f"out of memory: {error}") from error
        finally:
            with self._lock:
                self._running.discard(call)


def search_of(
    state: DecoderState, batch: SearchBatch, eos_id: int, options: SearchOptions
) -> Search:
    """Returns the search that the options ask for."""
    kind: Any = BeamSearch
    if options.do_sample:
        kind = partial(SamplingSearch, keys=batch.keys)
    if batch.demands.least > options.min_length:
        options = replace(options, min_length=batch.demands.least)
    found: Search = kind(
        *(state, batch.prompt),
        eos_id=eos_id,
        options=options,
        given=batch.given,
        demands=batch.demands,
    )
    return found
