"""Searches on buffers that a step graph writes in place: what the fused graphs' states share.

A table says which beam's past lies where. Knows onnxruntime's bindings, the step graph's inputs and
the rank graph; knows no text and no search. Shapes: B sentences, K beams, R = B * K rows, M
capacity of the buffers, L layers, H heads, E head size. What the graphs read or write is bound
once: a step changes numbers in place and runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.model.blocks import Block, Memory, shared, step_binding
from m2m100_onnx.model.head import Head
from m2m100_onnx.model.sessions import run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked, Ranking, rows_of

__all__ = ["CAPACITY", "InPlaceState", "cache_names", "capacity_of"]

CAPACITY = 64
"""Target tokens that buffers have room for at first; they double when that is used up."""


class InPlaceState(ABC):
    """Keys and values of the rows so far; a `DecoderState`.

    Row `b * K + k` of a buffer holds what beam k of sentence b was when a token was fed, and
    `cache_indirection[b, k, t]` says in which beam's row the past of beam k lies at position t. So
    reordering beams moves no keys and values.

    Attributes:
        vocab_size: V, the number of tokens.
    """

    def __init__(
        self,
        step: ort.InferenceSession,
        rank: ort.InferenceSession,
        memory: Memory,
        *,
        vocab_size: int,
        row_shape: tuple[int, int],
        cache_names: Sequence[str],
        first_tokens: Int64Array,
        past: Block | None = None,
        hidden_states: Float32Array | None = None,
    ) -> None:
        """Makes the buffers; a subclass has set what `_inputs` needs.

        Args:
            step: the session of the step graph.
            rank: the session of the rank graph.
            memory: where keys, values and activations lie.
            vocab_size: V.
            row_shape: H and E.
            cache_names: the graph's names of past keys and values, of each layer in turn.
            first_tokens: `(B, 1)` tokens that the first `best` feeds.
            past: keys and values of the P tokens before those, `(2 * L, B, H, P, E)`.
            hidden_states: the last layer's output at the first tokens, `(B, D)`, if they have been
                fed: then the last position of `past` is theirs.
        """
        self.vocab_size = vocab_size
        self._row_shape, self._cache_names = row_shape, cache_names
        self._step_session, self._rank_session, self._memory = step, rank, memory
        self._beams = 1
        length = 0 if past is None else past.shape[3]
        capacity = capacity_of(length + 1)
        self._past_length = np.array([length], np.int32)
        self._own = self._buffers(len(first_tokens), capacity)
        if past is not None:
            self._own.fill(past)
        self._indirection = _identity(len(first_tokens), 1, capacity)
        self._tokens = first_tokens.copy()
        self._known = hidden_states  # of the tokens; None while they wait to be fed
        self._bind()

    @abstractmethod
    def _inputs(self) -> Mapping[str, ort.OrtValue]:
        """Returns the step graph's inputs beside tokens and cache, by name."""

    @abstractmethod
    def _keep(self, kept: Int64Array) -> None:
        """Drops the other sentences from what `_inputs` returns; each has `_beams` rows now.

        Args:
            kept: the sentences that are left, each no further back than before.
        """

    @property
    def hidden_states(self) -> npt.NDArray[Any]:
        """A copy of the last layer's output for the token that was fed last, `(R, D)`."""
        found: npt.NDArray[Any] = self._head.hidden_states.numpy()
        return found

    @property
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""
        return len(self._tokens)

    def step(self, tokens: Int64Array) -> None:
        """Appends `tokens` `(R, 1)`; the graph runs at the next `best`."""
        self._tokens[:] = tokens
        self._known = None

    def best(self, ranking: Ranking) -> Ranked:
        """Returns the best next tokens of each row, in buffers that the next call reuses.

        Raises:
            InvalidInputError: a score is NaN.
            InferenceError: onnxruntime failed.
        """
        if self._known is None:
            self._feed()
        else:
            self._head.hidden_states.update_inplace(self._known)
        return self._head.best(ranking)

    def select(self, rows: Int64Array) -> None:
        """Makes row i a copy of old row `rows[i]`, tokens that wait to be fed included.

        The rows of a sentence stay side by side, as many for each sentence. A sentence keeps its
        place or moves forward.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        sentence_of_row = rows // self._beams
        starts = np.flatnonzero(np.diff(sentence_of_row, prepend=-1))
        kept, beams = sentence_of_row[starts], len(rows) // len(starts)
        assert np.array_equal(np.repeat(kept, beams), sentence_of_row), "rows lie scattered"
        assert (kept >= np.arange(len(kept))).all(), "sentences move back"
        sentences = len(self._indirection)
        changed = beams != self._beams or not np.array_equal(kept, np.arange(sentences))
        if beams != self._beams:
            self._copy_rows(rows, beams)
        else:
            parents = (rows % beams).reshape(-1, beams)
            table = self._indirection[kept[:, None], parents]
            length = int(self._past_length[0])
            if changed:
                self._drop(kept)
            self._indirection[:, :, :length] = table[:, :, :length]
        tokens = self._tokens[rows]
        if self._known is not None:
            self._known = self._known[rows]
        if changed:
            self._keep(kept)
            self._tokens = tokens
            self._bind()
        else:
            self._tokens[:] = tokens

    def _feed(self) -> None:
        """Runs the step graph on the tokens that wait, one per row."""
        length = int(self._past_length[0])
        if length == self._indirection.shape[2]:
            self._grow()
        self._indirection[:, :, length] = np.arange(self._beams, dtype=np.int32)
        for name, array in self._changing.items():
            self._memory.refresh(self._values[name], array)
        run(self._step_session, self._binding)
        self._past_length += 1

    def _bind(self) -> None:
        """Shares the arrays with onnxruntime; only `select` and `_grow` replace them."""
        # A step changes these numbers. Those of `past_length` stay where numpy reaches them, since
        # the operator that takes them runs on the host.
        self._changing = {"input_ids": self._tokens, "cache_indirection": self._indirection}
        cache = dict(zip(self._cache_names, self._own.values, strict=True))
        self._beam_size = np.array([self._beams], np.int32)
        self._values = {
            "past_length": shared(self._past_length),
            "beam_size": shared(self._beam_size),
            **{name: self._memory.value(array) for name, array in self._changing.items()},
            **self._inputs(),
        }
        hidden_states = self._memory.empty(self.rows, math.prod(self._row_shape))
        self._head = Head(self._rank_session, self.vocab_size, hidden_states)
        self._binding = step_binding(self._step_session, self._values, cache, hidden_states)
        self._values |= cache

    def _buffers(self, rows: int, capacity: int) -> Block:
        """Returns room for all layers, `(2 * L, R, H, M, E)`."""
        heads, size = self._row_shape
        return self._memory.block((len(self._cache_names), rows, heads, capacity, size))

    def _grow(self) -> None:
        """Doubles the buffers' capacity."""
        length = self._indirection.shape[2]
        self._own = self._own.grown(2 * length)
        table = _identity(len(self._indirection), self._beams, 2 * length)
        table[:, :, :length] = self._indirection
        self._indirection = table
        self._bind()

    def _copy_rows(self, rows: Int64Array, beams: int) -> None:
        """Copies the past of every row, for another number of beams."""
        length, capacity = int(self._past_length[0]), self._indirection.shape[2]
        sentences, parents = rows // self._beams, rows % self._beams
        # (R', length): the buffer row in which each position of a new row's past lies.
        place = self._indirection[sentences, parents, :length] + sentences[:, None] * self._beams
        self._own = self._own.gathered(place)
        self._indirection = _identity(len(rows) // beams, beams, capacity)
        self._beams = beams

    def _drop(self, kept: Int64Array) -> None:
        """Removes sentences that are not kept from the past."""
        rows = rows_of(kept, self._beams)
        self._own = self._own.taken(rows, int(self._past_length[0]))
        self._indirection = self._indirection[: len(kept)]


def cache_names(layers: int, part: str = "") -> list[str]:
    """Returns a step graph's names of past keys and values, of each layer in turn.

    Args:
        layers: L.
        part: `decoder.` for those of the target and `encoder.` for those of the source, where there
            are both.
    """
    kinds = ("key", "value")
    return [f"past_key_values.{n}.{part}{kind}" for n in range(layers) for kind in kinds]


def capacity_of(length: int) -> int:
    """Returns the capacity of buffers that hold `length` tokens."""
    capacity = CAPACITY
    while capacity < length:
        capacity *= 2
    return capacity


def _identity(sentences: int, beams: int, capacity: int) -> npt.NDArray[np.int32]:
    """Returns the table of beams that never moved, `(B, K, M)`."""
    table = np.empty((sentences, beams, capacity), np.int32)
    table[:] = np.arange(beams, dtype=np.int32)[:, None]
    return table
