"""Runs searches on a model: a batch of token ids becomes hypotheses.

Knows how many threads a batch is worth; knows no text, and leaves the search to `search/`. The
hypotheses of a sentence are the same whichever thread computes them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakSet

from m2m100_onnx.engine.batches import Batch, part_of
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.process import renew_in_children, side_by_side
from m2m100_onnx.search.beam import BeamSearch, Hypothesis
from m2m100_onnx.search.state import Int64Array

__all__ = ["Generator"]

_ROWS_A_PART = 15
"""Decoder rows per thread from which on each thread computes a part of the batch on its own.

Two threads share the operators of a step badly: most are small, and each ends with one thread
waiting for the other. But each thread with a part of its own reads all weights.
benchmarks/README.md has the measurement.
"""


class _Call:
    """A call that is running."""


class Generator:
    """Runs searches on a model; many threads may use one at the same time."""

    def __init__(self, model: Model) -> None:
        """Takes the model; no graph is opened."""
        self.model = model
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Counts from zero: the parent's calls do not run in a forked process."""
        self._lock = threading.Lock()
        self._running = WeakSet[_Call]()

    def generate(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
        options: SearchOptions,
    ) -> list[list[Hypothesis]]:
        """Returns the best hypotheses of every sentence.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)` 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens: the start token and the target language.
            options: what to search for.

        Returns:
            B lists of at most `num_hypotheses` hypotheses, best first.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed, or memory is exhausted.
            InvalidInputError: shapes or ids do not fit together, or scores are NaN.
        """
        found = self.run(Batch(input_ids, attention_mask, prompt), options, Stop())
        return [hypotheses or [] for hypotheses in found]

    def run(
        self, batch: Batch, options: SearchOptions, stop: Stop
    ) -> list[list[Hypothesis] | None]:
        """Returns the hypotheses of every sentence; None for those that `stop` left unfinished.

        A call that has the model to itself uses all threads: for the whole batch, or for parts of a
        large one side by side. A call that finds another one running uses one thread. Raises as
        `generate` does.
        """
        with self._counted() as others:
            parts = 1 if others else self._parts(len(batch), options.beam_size)
            serial = (parts > 1 or others > 0) and self.model.can_run_serially
            runs = [
                partial(self._search, part_of(batch, n, parts, self._pad), options, stop, serial)
                for n in range(parts)
            ]
            found: list[list[Hypothesis] | None] = [None] * len(batch)
            try:
                for part, some in enumerate(side_by_side(*runs)):
                    found[part::parts] = some
            except MemoryError as error:
                raise InferenceError(f"out of memory: {error}") from error
            return found

    @property
    def _pad(self) -> int:
        return self.model.bundle.config.pad_token_id

    def _search(
        self, batch: Batch, options: SearchOptions, stop: Stop, serial: bool
    ) -> list[list[Hypothesis] | None]:
        """Searches until all sentences have ended, or `stop` is reached."""
        if stop.reached:
            return [None] * len(batch)
        eos_id = self.model.bundle.config.eos_token_id
        state = self.model.begin(*batch.arrays, serial=serial)
        search = BeamSearch(state, batch.prompt, eos_id=eos_id, options=options)
        while search.live and not stop.reached:
            search.step()
        live = set(search.live)
        return [None if n in live else search.hypotheses(n) for n in range(len(batch))]

    def _parts(self, sentences: int, beam_size: int) -> int:
        """Returns the number of parts of a batch: one per thread, or one."""
        threads = self.model.threads
        if sentences < threads or sentences * beam_size < threads * _ROWS_A_PART:
            return 1
        return threads if self.model.can_run_serially else 1

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """Counts a call while it runs; yields the number of others that run."""
        call = _Call()
        with self._lock:
            others = len(self._running)
            self._running.add(call)
        try:
            yield others
        finally:
            with self._lock:
                self._running.discard(call)
