"""A batch of token ids into hypotheses: which threads do the work, and in how many parts.

Knows how many rows pay for a part of their own; knows no text, and leaves the search to
`decoding.py`. A sentence's hypotheses are the same whoever computes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakSet

import numpy as np

from m2m100_onnx.contention import Contention
from m2m100_onnx.decoding import Hypothesis, SearchOptions, search
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.forking import renew_in_children
from m2m100_onnx.model import Model
from m2m100_onnx.ranking import Int64Array
from m2m100_onnx.threads import side_by_side

__all__ = ["Generator"]

_ROWS_A_PART = 15
"""From so many decoder rows a thread on, each thread is better off with sentences of its own.

Two threads share the operators of a step badly, since most are small and each ends with one waiting
for the other; but with sentences of its own, each thread reads all weights. Measured in
benchmarks/README.md.
"""

_SOURCE_STEP = 4
"""Source lengths are multiples of this, with padding.

Sums over the source are added up four numbers at a time and the rest one by one, so a sentence of
five tokens alone, and padded to eight beside another, differed in the last bit. Where activations
are then rounded to eight bits much can become of that: of 720 sentences, four became others.
"""


class _Call:
    """A call that is running; one that ends in whatever way is no longer counted."""


class Generator:
    """Runs searches on a model; safe to use from many threads at once."""

    def __init__(self, model: Model) -> None:
        """Takes the model; nothing is opened."""
        self.model = model
        self._contention = Contention()
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Counts from zero: the calls that were running are not in a forked process."""
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

        A call that has the model to itself uses all threads: for one batch, or for parts of a large
        one side by side. Calls that find another running use a thread each, and so do steps on two
        cores of which another program wants one.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens: the start token and the target language.
            options: what to search for.

        Returns:
            B lists of at most `num_hypotheses` hypotheses, best first.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed, or there is no memory.
            InvalidInputError: shapes or ids that do not fit together, or scores that are not
                numbers.
        """
        with self._counted() as others:
            parts = 1 if others else self._parts(len(prompt), options.beam_size)
            serial: bool | Callable[[], bool] = parts > 1
            if parts == 1 and self.model.can_run_serially:
                # With more threads than two, one would be left out rather than all but one.
                serial = others > 0 or (self.model.threads == 2 and self._contention.watch())

            def run(part: int) -> list[list[Hypothesis]]:
                # Every other sentence, as batches come sorted by length.
                ids, mask, first = (a[part::parts] for a in (input_ids, attention_mask, prompt))
                config = self.model.bundle.config
                longest = int(mask.sum(axis=1).max())
                ids, mask = _fitted(ids, longest, config.pad_token_id), _fitted(mask, longest, 0)
                state = self.model.begin(ids, mask, first.copy(), serial=serial)
                return search(state, first, eos_id=config.eos_token_id, options=options)

            found: list[list[Hypothesis]] = [[]] * len(prompt)
            try:
                for part, some in enumerate(side_by_side(*(partial(run, p) for p in range(parts)))):
                    found[part::parts] = some
            except MemoryError as error:
                raise InferenceError(f"out of memory: {error}") from error
            return found

    def _parts(self, sentences: int, beam_size: int) -> int:
        """How many parts to cut a batch into: one for each thread, or one."""
        threads = self.model.threads
        if sentences < threads or sentences * beam_size < threads * _ROWS_A_PART:
            return 1
        return threads if self.model.can_run_serially else 1

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """Counts a call, and says how many others are running."""
        call = _Call()
        with self._lock:
            others = len(self._running)
            self._running.add(call)
        try:
            yield others
        finally:
            with self._lock:
                self._running.discard(call)


def _fitted(array: Int64Array, longest: int, padding: int) -> Int64Array:
    """`(B, S)` with as many columns as `longest` takes, in whole steps."""
    width = -(-longest // _SOURCE_STEP) * _SOURCE_STEP
    fitted = np.full((len(array), width), padding, np.int64)
    fitted[:, :longest] = array[:, :longest]
    return fitted
