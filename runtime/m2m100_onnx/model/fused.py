"""The fused graphs at work, on a CPU: the twin of `portable.py`.

Buffers are written in place, and a table says which beam's past lies where. Knows the fused graphs'
inputs and onnxruntime's bindings; knows no text and no search. Shapes: B sentences, K beams,
R = B * K rows, S source length, M capacity of the buffers, H heads, E head size. Everything that
the graphs read or write is a numpy array that onnxruntime shares, bound once: a step changes
numbers in place and runs.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.graphs import FUSED_RANK_FILE, FUSED_SOURCE_FILE, FUSED_STEP_FILE
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx.search.ranking import amend, among
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked, Ranking

__all__ = ["FusedState"]

_CAPACITY = 64
"""Target tokens that buffers have room for at first; they double when that is used up."""
_LARGE = 1 << 20
"""Bytes from which on a block is memory of its own."""
_OWN, _SOURCE = "past_key_values.{}.decoder.{}", "past_key_values.{}.encoder.{}"


class FusedState:
    """Keys and values of the target so far and of the source; a `DecoderState`.

    Row `b * K + k` of a buffer holds what beam k of sentence b was when a token was fed, and
    `cache_indirection[b, k, t]` says in which beam's row the past of beam k lies at position t. So
    reordering beams moves no keys and values.

    Attributes:
        vocab_size: V, the number of tokens.
        hidden_states: `(R, D)` the last layer's output for the token that was fed last.
    """

    def __init__(
        self,
        sessions: Sessions,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
        *,
        serial: bool = False,
    ) -> None:
        """Encodes the source, and feeds the prompt but for its last token, which `best` feeds.

        Args:
            sessions: the bundle's sessions.
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens.
            serial: whether all runs stay in the caller's thread.
        """
        config = sessions.bundle.config
        self.vocab_size = config.vocab_size
        heads = config.decoder_attention_heads
        self._row_shape = (heads, config.d_model // heads)
        self._names = [
            (layer, kind) for layer in range(config.decoder_layers) for kind in ("key", "value")
        ]
        self._mask = attention_mask.copy()
        self._source = self._encode(sessions.get(FUSED_SOURCE_FILE, serial=serial), input_ids)
        self._step_session = sessions.get(FUSED_STEP_FILE, serial=serial)
        self._rank_session = sessions.get(FUSED_RANK_FILE, serial=serial)
        self._beams = 1
        self._past_length = np.zeros(1, np.int32)
        self._own = self._buffers(len(prompt), _CAPACITY)
        self._indirection = _identity(len(prompt), 1, _CAPACITY)
        self._tokens = prompt[:, :1].copy()
        self._bind()
        for column in range(1, prompt.shape[1]):
            self._feed()
            self.step(prompt[:, column : column + 1])

    @staticmethod
    def cache_bytes(
        bundle: Bundle, sentences: int, rows: int, source_length: int, target_length: int
    ) -> int:
        """Returns the bytes that a batch reserves when every row has `target_length` tokens.

        Keys and values take `8 * L * H * E * (R * M + B * S)`. While buffers double, the old ones
        exist beside the new. Scores are `R * V` float32, and the graph's copies of them.
        """
        config = bundle.config
        capacity = _CAPACITY
        while capacity < target_length - 1:  # The last token is not fed.
            capacity *= 2
        room = capacity if capacity == _CAPACITY else capacity + capacity // 2
        width = 2 * config.decoder_layers * config.d_model
        cache = width * (rows * room + sentences * source_length)
        return 4 * (cache + 3 * rows * config.vocab_size)

    @property
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""
        return len(self._tokens)

    def step(self, tokens: Int64Array) -> None:
        """Appends `tokens` `(R, 1)`; the graph runs at the next `best`."""
        self._tokens[:] = tokens

    def best(self, ranking: Ranking) -> Ranked:
        """Returns the best next tokens of each row, in buffers that the next call reuses.

        Raises:
            InvalidInputError: a score is NaN.
            InferenceError: onnxruntime failed.
        """
        self._feed()
        head = self._head
        if ranking.renormalized and (len(ranking.seen) or len(ranking.banned)):
            if len(ranking.seen) and len(ranking.banned):
                allowed = ~among(ranking.seen, ranking.banned)
                ranking = replace(ranking, seen=ranking.seen[allowed])
            ranked = head.rank(ranking)[0]
            if len(ranking.banned) >= self.vocab_size:
                # The softmax of a row in which all is banned is undefined.
                cells = np.unique(ranking.banned, axis=0)[:, 0]
                empty = np.bincount(cells, minlength=self.rows) >= self.vocab_size
                ranked.scores[empty] = -np.inf
            return _numbers(ranked)
        # A ban after the softmax needs only enough other tokens to take the banned ones' places.
        count = ranking.count + ranking.most_cells(self.rows)
        ranked, seen_scores = head.rank(replace(ranking, count=count, renormalized=False))
        return amend(_numbers(ranked), seen_scores, ranking)

    def select(self, rows: Int64Array) -> None:
        """Makes row i a copy of old row `rows[i]`, tokens that wait to be fed included.

        The rows of a sentence stay side by side, as many for each sentence, and sentences in order.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        sentence_of_row = rows // self._beams
        starts = np.flatnonzero(np.diff(sentence_of_row, prepend=-1))
        kept, beams = sentence_of_row[starts], len(rows) // len(starts)
        assert np.array_equal(np.repeat(kept, beams), sentence_of_row), "rows lie scattered"
        assert (np.diff(kept) > 0).all(), "sentences change places"
        changed = beams != self._beams or not np.array_equal(kept, np.arange(len(self._mask)))
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
        if changed:
            self._keep_sources(kept)
            self._tokens = tokens
            self._bind()
        else:
            self._tokens[:] = tokens

    def _encode(self, session: ort.InferenceSession, input_ids: Int64Array) -> Float32Array:
        """Returns the keys and values of all layers, `(2 * L, B, H, S, E)`."""
        heads, size = self._row_shape
        # One block, which is freed as a whole.
        source = _block((len(self._names), len(input_ids), heads, input_ids.shape[1], size))
        binding = session.io_binding()
        # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
        ids, mask = _shared(input_ids), _shared(self._mask)
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        outputs = [_shared(array) for array in source]
        for (layer, kind), value in zip(self._names, outputs, strict=True):
            binding.bind_ortvalue_output(f"present.{layer}.encoder.{kind}", value)
        run(session, binding)
        return source

    def _feed(self) -> None:
        """Runs the step graph on the tokens that wait, one per row."""
        length = int(self._past_length[0])
        if length == self._indirection.shape[2]:
            self._grow()
        self._indirection[:, :, length] = np.arange(self._beams, dtype=np.int32)
        run(self._step_session, self._binding)
        self._past_length += 1

    def _bind(self) -> None:
        """Shares the arrays with onnxruntime; only `select` and `_grow` replace them."""
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": self._tokens,
            "past_length": self._past_length,
            "beam_size": np.array([self._beams], np.int32),
            "cache_indirection": self._indirection,
            "encoder_attention_mask": self._mask,
        }
        for name, blocks in ((_SOURCE, self._source), (_OWN, self._own)):
            named = zip(self._names, blocks, strict=True)
            inputs |= {name.format(*layer): array for layer, array in named}
        # A binding keeps no reference to what it binds.
        self._values = {name: _shared(array) for name, array in inputs.items()}
        self._binding = self._step_session.io_binding()
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
            if ".decoder." in name:
                # New keys and values are written where the past lies.
                present = name.replace("past_key_values", "present")
                self._binding.bind_ortvalue_output(present, value)
        self.hidden_states = np.empty((self.rows, math.prod(self._row_shape)), np.float32)
        self._head = _Head(self._rank_session, self.vocab_size, self.hidden_states)
        self._binding.bind_ortvalue_output("hidden_states", self._head.hidden_states)

    def _buffers(self, rows: int, capacity: int) -> Float32Array:
        """Returns room for all layers, `(2 * L, R, H, M, E)`: one block, freed as a whole."""
        heads, size = self._row_shape
        return _block((len(self._names), rows, heads, capacity, size))

    def _grow(self) -> None:
        """Doubles the buffers' capacity."""
        length = self._indirection.shape[2]
        old = self._own
        self._own = self._buffers(old.shape[1], 2 * length)
        self._own[:, :, :, :length] = old
        table = _identity(len(self._mask), self._beams, 2 * length)
        table[:, :, :length] = self._indirection
        self._indirection = table
        self._bind()

    def _copy_rows(self, rows: Int64Array, beams: int) -> None:
        """Copies the past of every row, for another number of beams."""
        length, capacity = int(self._past_length[0]), self._indirection.shape[2]
        sentences, parents = rows // self._beams, rows % self._beams
        # (R', length): the buffer row in which each position of a new row's past lies.
        place = self._indirection[sentences, parents, :length] + sentences[:, None] * self._beams
        olds, self._own = self._own, self._buffers(len(rows), capacity)
        for old, new in zip(olds, self._own, strict=True):
            past = old[place, :, np.arange(length)]  # (R', length, H, E)
            new[:, :, :length] = past.transpose(0, 2, 1, 3)
        self._indirection = _identity(len(rows) // beams, beams, capacity)
        self._beams = beams

    def _drop(self, kept: Int64Array) -> None:
        """Removes sentences that are not kept from the past."""
        rows = (kept[:, None] * self._beams + np.arange(self._beams)).reshape(-1)
        self._own = _to_front(self._own, rows, int(self._past_length[0]))
        self._indirection = self._indirection[: len(kept)]

    def _keep_sources(self, kept: Int64Array) -> None:
        self._source = _to_front(self._source, kept, self._mask.shape[1])
        self._mask = self._mask[kept]


class _Head:
    """The rank graph; its inputs and outputs are bound again only when they change."""

    def __init__(
        self, session: ort.InferenceSession, vocab_size: int, hidden_states: Float32Array
    ) -> None:
        """Binds the `(R, D)` array that the step graph writes and every `rank` reads."""
        self._session = session
        self._vocab_size = vocab_size
        self._binding = session.io_binding()
        self._rows = len(hidden_states)
        # A binding keeps no reference to what it binds.
        self._bound: dict[str, tuple[npt.NDArray[Any], ort.OrtValue]] = {}
        self.hidden_states = _shared(hidden_states)
        self._binding.bind_ortvalue_input("hidden_states", self.hidden_states)

    def rank(self, ranking: Ranking) -> tuple[Ranked, Float32Array]:
        """Returns the graph's ranking, and the scores of the cells `ranking.seen`."""
        count = min(ranking.count, self._vocab_size)
        inputs = {
            "count": np.array([count]),
            "repetition_penalty": np.array(ranking.repetition_penalty, np.float32),
            "renormalized": np.array(ranking.renormalized),
            "seen": ranking.seen,
            "banned": ranking.banned,
        }
        outputs = {
            "scores": ((self._rows, count), np.float32),
            "tokens": ((self._rows, count), np.int64),
            "seen_scores": ((len(ranking.seen),), np.float32),
        }
        for name, array in inputs.items():
            if name not in self._bound or not np.array_equal(self._bound[name][0], array):
                self._bound[name] = array, _shared(array)
                self._binding.bind_ortvalue_input(name, self._bound[name][1])
        for name, (shape, kind) in outputs.items():
            if name not in self._bound or self._bound[name][0].shape != shape:
                array = np.empty(shape, kind)
                self._bound[name] = array, _shared(array)
                self._binding.bind_ortvalue_output(name, self._bound[name][1])
        run(self._session, self._binding)
        scores, tokens, seen_scores = (self._bound[name][0] for name in outputs)
        return Ranked(scores, tokens), seen_scores


def _block(shape: tuple[int, ...]) -> Float32Array:
    """Returns room for numbers; a large block is memory of its own, freed with the array.

    malloc may keep what is freed. glibc maps a first block of up to 32 MB apart, but takes all
    later blocks of that size from its heap, which then stays as large as the largest translation.
    And from 4 MB on numpy asks for huge pages, for which the kernel first compacts fragmented
    memory: that took up to a tenth of a whole translation.
    """
    size = 4 * math.prod(shape)
    if size < _LARGE:
        return np.empty(shape, np.float32)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        block = mmap.mmap(-1, size, **private)
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise MemoryError(f"no {size:,} bytes for keys and values: {error}") from error
    return np.frombuffer(block, np.float32).reshape(shape)


def _numbers(ranked: Ranked) -> Ranked:
    """Returns the ranking; refuses a score that is NaN, which a comparison might hide."""
    if np.isnan(ranked.scores).any():
        raise InvalidInputError("logits: expected finite numbers, found NaN")
    return ranked


def _to_front(block: Float32Array, rows: Int64Array, length: int) -> Float32Array:
    """Moves `rows` of a block `(2 * L, R, H, M, E)` to its front, up to a length, and cuts it."""
    # Rows move to the front only, so none is overwritten before it has moved.
    for row in np.flatnonzero(rows != np.arange(len(rows))):
        block[:, row, :, :length] = block[:, rows[row], :, :length]
    return block[:, : len(rows)]


def _identity(sentences: int, beams: int, capacity: int) -> npt.NDArray[np.int32]:
    """Returns the table of beams that never moved, `(B, K, M)`."""
    table = np.empty((sentences, beams, capacity), np.int32)
    table[:] = np.arange(beams, dtype=np.int32)[:, None]
    return table


def _shared(array: npt.NDArray[Any]) -> ort.OrtValue:
    """Returns the array as an OrtValue, without a copy; the caller keeps the array."""
    assert array.flags.c_contiguous
    return ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
