"""Rows of several searches in one run of the native step graph: sentences join and leave.

A native graph takes a past length for every row, so that searches need not have begun together.
Knows the step graph's inputs; knows no search. Shapes: N sentences now, K beams of each, R = N * K
rows, M capacity of the buffers, S source length, L layers, H heads, E head size, D width.

Sentence n has the rows `n * K` to `n * K + K - 1` of every array. Where one leaves, the last one
takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.model.blocks import HostBlock, HostMemory, cache_real_of, shared, step_binding
from m2m100_onnx.model.fused import FusedState, Held
from m2m100_onnx.model.head import Head
from m2m100_onnx.model.in_place import cache_names, capacity_of
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import NO_CELLS, Int64Array, Ranked, Ranking, left, rows_of

__all__ = ["JointState", "Seat"]

_SOURCE_STEP = 32
"""Source lengths that buffers have room for are multiples of this."""


class Seat:
    """A search's side of a joint state; a `DecoderState`.

    It begins in one of two ways. With a state of its own it makes the first step on that, and then
    `sits` down. Or it sits from the beginning, and its prompt is fed with the tokens of others: the
    K rows of a sentence are alike then, and the search sees one of them until it asks for more.

    Attributes:
        vocab_size: V.
        places: `(N,)` the place of each of the search's sentences in the joint state.
    """

    def __init__(self, vocab_size: int) -> None:
        """Makes a side that has no rows yet."""
        self.vocab_size = vocab_size
        self.places: Int64Array = np.empty(0, np.int64)
        self._own: FusedState | None = None
        self._joint: JointState | None = None
        self._seen = 0  # rows of a sentence that the search sees
        self._prompt: Int64Array | None = None

    @classmethod
    def alone(cls, state: FusedState) -> Seat:
        """Begins with a state of its own."""
        seat = cls(state.vocab_size)
        seat._own = state
        return seat

    @classmethod
    def among(
        cls, joint: JointState, source: HostBlock, mask: Int64Array, prompt: Int64Array
    ) -> Seat:
        """Begins in a joint state, which feeds the prompt.

        Args:
            joint: the state.
            source: `(2 * L, B, H, S, E)` keys and values of the source.
            mask: `(B, S)` its attention mask.
            prompt: `(B, P)` first decoder tokens.
        """
        seat = cls(joint.vocab_size)
        count, beams = len(prompt), joint.beams
        layers, _, heads, _, size = source.shape
        held = Held(
            np.empty((layers, count * beams, heads, 0, size), source.array.dtype),
            source.array,
            mask,
            np.empty((count, beams, 0), np.int32),
            np.zeros((count * beams, 1), np.int64),
        )
        seat.places = joint.join(seat, held)
        seat._joint, seat._prompt, seat._seen = joint, prompt, 1
        return seat

    @property
    def seated(self) -> bool:
        """Whether the rows are in a joint state."""
        return self._joint is not None

    @property
    def prompted(self) -> bool:
        """Whether tokens of the prompt wait to be fed."""
        return self._prompt is not None

    def next_of_prompt(self) -> None:
        """Has the next token of the prompt fed."""
        assert self._joint is not None
        assert self._prompt is not None
        beams = self._joint.beams
        rows = rows_of(self.places, beams)
        self._joint.tokens[rows] = np.repeat(self._prompt[:, :1], beams, axis=0)
        self._prompt = self._prompt[:, 1:] if self._prompt.shape[1] > 1 else None

    def sit(self, joint: JointState) -> None:
        """Moves the rows, whose tokens wait to be fed, into a joint state of as many beams."""
        assert self._own is not None
        self.places = joint.join(self, self._own.held())
        self._own, self._joint, self._seen = None, joint, joint.beams

    def stand(self) -> None:
        """Takes all rows out."""
        if self._joint is not None:
            self._joint.leave(self.places)
        self._own = self._joint = None

    @property
    def own_rows(self) -> int:
        """R, before it sits."""
        assert self._own is not None
        return self._own.rows

    @property
    def rows(self) -> Int64Array:
        """`(R',)` the rows in the joint state that the search sees, in its order."""
        assert self._joint is not None
        first = self.places[:, None] * self._joint.beams
        found: Int64Array = (first + np.arange(self._seen)).reshape(-1)
        return found

    def best(self, ranking: Ranking) -> Ranked:
        """Ranks the first step, on the state that the search began with."""
        assert self._own is not None, "a joint state ranks the rows of all searches"
        return self._own.best(ranking)

    def step(self, tokens: Int64Array) -> None:
        """Appends `tokens` `(R', 1)`, to be fed with those of the other searches."""
        if self._joint is None:
            assert self._own is not None
            self._own.step(tokens)
        else:
            self._joint.tokens[self.rows] = tokens

    def select(self, rows: Int64Array) -> None:
        """Makes row i a copy of old row `rows[i]`; see `InPlaceState.select`."""
        if self._joint is None:
            assert self._own is not None
            self._own.select(rows)
            return
        before = rows // self._seen
        kept = before[np.flatnonzero(np.diff(before, prepend=-1))]
        seen = len(rows) // len(kept)
        assert np.array_equal(before, np.repeat(kept, seen)), "rows lie scattered"
        if seen == self._seen == self._joint.beams:
            self._joint.reorder(self.places[kept], (rows % seen).reshape(-1, seen))
        self._seen = seen  # Where that is new, all rows of a sentence have been alike.
        gone = np.setdiff1d(np.arange(len(self.places)), kept)
        if len(gone):
            leaving, self.places = self.places[gone], self.places[kept]
            self._joint.leave(leaving)


class JointState:
    """Keys and values of sentences that are at different lengths.

    Attributes:
        beams: K.
        vocab_size: V.
        tokens: `(R, 1)` what is fed next.
        count: N, the sentences that are there.
    """

    tokens: Int64Array

    def __init__(self, sessions: Sessions[Bundle], files: Sequence[str], beams: int) -> None:
        """Makes room for nothing.

        Args:
            sessions: the bundle's sessions.
            files: the native graphs that run: source, step and rank.
            beams: K.
        """
        config = sessions.bundle.config
        self.beams, self.count = beams, 0
        self._sessions, self.vocab_size = sessions, config.vocab_size
        self._files, self._real = files, cache_real_of(sessions.bundle, files)
        self._heads = config.decoder_attention_heads
        self._size = config.d_model // self._heads
        self._own_names = cache_names(config.decoder_layers, "decoder.")
        self._source_names = cache_names(config.decoder_layers, "encoder.")
        self._owners: list[Seat] = []
        self._room = self._positions = self._width = 0
        self._bound: _Bound | None = None
        self._make(0, 0, 0)

    def join(self, seat: Seat, held: Held) -> Int64Array:
        """Appends sentences, and returns their places."""
        count, beams, length = held.table.shape
        assert beams == self.beams, "another number of beams"
        width = held.mask.shape[1]
        self._reserve(self.count + count, length + 1, width)
        places = np.arange(self.count, self.count + count)
        some, rows = slice(self.count, self.count + count), self._rows_of(self.count, count)
        self._own.array[:, rows, :, :length] = held.own[:, :, :, :length]
        self._source.array[:, some, :, :width] = held.source
        self._mask[some] = 0
        self._mask[some, :width] = held.mask
        self._table[some, :, :length] = held.table
        self._lengths[rows], self.tokens[rows] = length, held.tokens
        self._owners += [seat] * count
        self.count += count
        self._bound = None
        return places

    def reorder(self, places: Int64Array, parents: Int64Array) -> None:
        """Gives beam k of each sentence the past of its beam `parents[n, k]`, and its token."""
        self._table[places] = self._table[places[:, None], parents]
        rows = places[:, None] * self.beams
        self.tokens[rows + np.arange(self.beams)] = self.tokens[rows + parents]

    def leave(self, places: Int64Array) -> None:
        """Takes sentences out; the last ones take their places."""
        stays = np.ones(self.count, np.bool_)
        stays[places] = False
        order = left(stays)
        for to in np.flatnonzero(order != np.arange(len(order))).tolist():
            self._move(int(order[to]), to)
        self.count = len(order)
        del self._owners[self.count :]
        self._bound = None

    def feed(self, *, serial: bool) -> None:
        """Runs the step graph on the tokens that wait.

        Args:
            serial: whether the run stays in the caller's thread.

        Raises:
            InferenceError: onnxruntime failed.
        """
        self._reserve(self.count, int(self._lengths[: self.count * self.beams].max()) + 1, 0)
        sentences = np.arange(self.count)
        ends = self._lengths[: self.count * self.beams : self.beams]
        self._table[sentences, :, ends] = np.arange(self.beams, dtype=np.int32)
        if self._bound is None or self._bound.serial != serial:
            self._bound = self._bind(serial)
        run(self._bound.session, self._bound.binding)
        self._lengths[: self.count * self.beams] += 1

    def best(self, asked: Sequence[tuple[Seat, Ranking]]) -> list[Ranked]:
        """Ranks the rows of all searches, and returns what each of them asked for.

        Args:
            asked: what each search wants, in terms of its own rows; all the same but for counts
                and cells.

        Raises:
            InvalidInputError: a score is NaN.
            InferenceError: onnxruntime failed.
        """
        assert self._bound is not None
        rows = [seat.rows for seat, _ in asked]
        rankings = [ranking for _, ranking in asked]
        ranking = replace(
            rankings[0],
            count=max(one.count for one in rankings),
            seen=_joined([one.seen for one in rankings], rows),
            banned=_joined([one.banned for one in rankings], rows),
            asked=_joined([one.asked for one in rankings], rows),
        )
        ranked = self._bound.head.best(ranking)
        ends = np.cumsum([len(one.asked) for one in rankings])
        parts = np.split(ranked.asked, ends[:-1])
        return [
            Ranked(ranked.scores[own, : one.count], ranked.tokens[own, : one.count], part)
            for own, one, part in zip(rows, rankings, parts, strict=True)
        ]

    def _rows_of(self, place: int, count: int = 1) -> slice:
        return slice(place * self.beams, (place + count) * self.beams)

    def _move(self, place: int, to: int) -> None:
        """Copies a sentence to another place."""
        before, after = self._rows_of(place), self._rows_of(to)
        length = int(self._lengths[before.start])
        self._own.array[:, after, :, :length] = self._own.array[:, before, :, :length]
        self._source.array[:, to] = self._source.array[:, place]
        self._mask[to], self._table[to] = self._mask[place], self._table[place]
        self._lengths[after], self.tokens[after] = self._lengths[before], self.tokens[before]
        seat = self._owners[to] = self._owners[place]
        seat.places = np.where(seat.places == place, to, seat.places)

    def _reserve(self, count: int, positions: int, width: int) -> None:
        """Makes room for sentences, positions of a target and positions of a source."""
        if count <= self._room and positions <= self._positions and width <= self._width:
            return
        before = self._own, self._source, self._mask, self._table, self._lengths, self.tokens
        room = self._room if count <= self._room else max(count, 2 * self._room)
        width = max(self._width, -(-width // _SOURCE_STEP) * _SOURCE_STEP)
        self._make(room, max(self._positions, capacity_of(positions)), width)
        own, source, mask, table, lengths, tokens = before
        rows = self.count * self.beams
        used = int(lengths[:rows].max(initial=0))
        self._own.array[:, :rows, :, :used] = own.array[:, :rows, :, :used]
        self._source.array[:, : self.count, :, : mask.shape[1]] = source.array[:, : self.count]
        self._mask[: self.count, : mask.shape[1]] = mask[: self.count]
        self._table[: self.count, :, :used] = table[: self.count, :, :used]
        self._lengths[:rows], self.tokens[:rows] = lengths[:rows], tokens[:rows]

    def _make(self, room: int, positions: int, width: int) -> None:
        """Makes arrays of other sizes."""
        self._room, self._positions, self._width = room, positions, width
        layers, memory = len(self._own_names), HostMemory(self._real)
        rows = room * self.beams
        self._own = memory.block((layers, rows, self._heads, positions, self._size))
        self._source = memory.block((layers, room, self._heads, width, self._size))
        self._mask = np.zeros((room, width), np.int64)
        self._table: npt.NDArray[np.int32] = np.zeros((room, self.beams, positions), np.int32)
        self._lengths = np.zeros(rows, np.int32)
        self.tokens = np.zeros((rows, 1), np.int64)
        self._bound = None

    def _bind(self, serial: bool) -> _Bound:
        """Shares the rows that are there with onnxruntime."""
        count, rows = self.count, self.count * self.beams
        _, step, rank = self._files
        own = HostBlock(self._own.array[:, :rows])
        source = HostBlock(self._source.array[:, :count])
        inputs = {
            "input_ids": shared(self.tokens[:rows]),
            "past_length": shared(self._lengths[:rows]),
            "beam_size": shared(np.array([self.beams], np.int32)),
            "cache_indirection": shared(self._table[:count]),
            "encoder_attention_mask": shared(self._mask[:count]),
            **dict(zip(self._source_names, source.values, strict=True)),
        }
        cache = dict(zip(self._own_names, own.values, strict=True))
        hidden = HostMemory().empty(rows, self._heads * self._size)
        session = self._sessions.get(step, serial=serial)
        head = Head(self._sessions.get(rank, serial=serial), self.vocab_size, hidden)
        binding = step_binding(session, inputs, cache, hidden)
        return _Bound(session, binding, head, serial, (inputs, cache))


class _Bound(NamedTuple):
    """The step graph with its inputs and outputs, until rows join or leave.

    Attributes:
        session: the graph's.
        binding: its inputs and outputs.
        head: ranks its output.
        serial: whether runs stay in the caller's thread.
        values: what is bound; a binding keeps no reference to it.
    """

    session: ort.InferenceSession
    binding: ort.IOBinding
    head: Head
    serial: bool
    values: object


def _joined(cells: Sequence[Int64Array], rows: Sequence[Int64Array]) -> Int64Array:
    """Returns cells of several searches, each in terms of its own rows, as cells of all rows."""
    moved = [
        np.stack([own[some[:, 0]], some[:, 1]], axis=1)
        for some, own in zip(cells, rows, strict=True)
        if len(some)
    ]
    return np.concatenate(moved) if moved else NO_CELLS
