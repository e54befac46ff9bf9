"""What the search and the model tell each other: rows, rankings, and the state that is stepped.

Knows shapes; knows no sessions, no beams and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "NO_CELLS",
    "NO_SCORES",
    "DecoderState",
    "Float32Array",
    "Int64Array",
    "Ranked",
    "Ranking",
    "follow",
    "left",
    "rows_of",
]

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]

NO_CELLS: Int64Array = np.empty((0, 2), np.int64)
"""No cell, that is no pair of row and token."""
NO_SCORES: Float32Array = np.empty(0, np.float32)
"""The scores of no cells."""


@dataclass(frozen=True)
class Ranking:
    """Which tokens a step wants of every row, and what their scores undergo first.

    Attributes:
        count: the number of best tokens per row.
        renormalized: whether penalty and bans act before the softmax, as in greedy search, so that
            the remaining tokens share all probability; else they act on log-probabilities.
        repetition_penalty: multiplies the scores of `seen` cells below 0, divides those above.
        seen: `(N, 2)` rows and tokens; a cell that occurs twice counts once.
        banned: `(M, 2)` rows and tokens that must not occur.
        asked: `(Q, 2)` rows and tokens whose scores are wanted however low; not `renormalized`.
    """

    count: int
    renormalized: bool = False
    repetition_penalty: float = 1.0
    seen: Int64Array = field(default_factory=lambda: NO_CELLS)
    banned: Int64Array = field(default_factory=lambda: NO_CELLS)
    asked: Int64Array = field(default_factory=lambda: NO_CELLS)

    def most_cells(self, rows: int) -> int:
        """Returns the largest number of cells, seen or banned, of one of `rows` rows."""
        cells = np.concatenate([self.seen, self.banned])
        return int(np.bincount(cells[:, 0], minlength=rows).max(initial=0))


@dataclass(frozen=True)
class Ranked:
    """The best tokens of every row, best first; a tie goes to the lowest token.

    Attributes:
        scores: `(R, k)` log-probabilities, k the least of `Ranking.count` and V; -inf is banned.
        tokens: `(R, k)` ids.
        asked: `(Q,)` log-probabilities of the cells `Ranking.asked`, as `scores` has them.
    """

    scores: Float32Array
    tokens: Int64Array
    asked: Float32Array = field(default_factory=lambda: NO_SCORES)


class DecoderState(Protocol):
    """The model's side of a search: R rows, each a prefix that the decoder has been fed."""

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        ...

    def best(self, ranking: Ranking) -> Ranked:
        """Returns the best next tokens of each row; called once after each step."""
        ...

    def step(self, tokens: Int64Array) -> None:
        """Appends `tokens` `(R, 1)` to the rows."""
        ...

    def select(self, rows: Int64Array) -> None:
        """Makes row i a copy of old row `rows[i]`, for all of `rows` `(R',)`.

        Covers beam expansion, beam reordering and dropping sentences, whose places are `left`.
        """
        ...


def follow(
    state: DecoderState, state_rows: int, rows: Int64Array, tokens: Int64Array | None
) -> None:
    """Lets a state follow a search: rows first, then the last token of each.

    Args:
        state: the decoder.
        state_rows: R, the rows that it has.
        rows: `(R',)` the rows that the sequences grow from.
        tokens: `(N, K, length)` the sequences; None where the state has been fed them.
    """
    if not np.array_equal(rows, np.arange(state_rows)):
        state.select(rows)
    if tokens is not None:
        state.step(tokens[:, :, -1].reshape(-1, 1))


def left(stays: npt.NDArray[np.bool_]) -> Int64Array:
    """Returns the places of the sentences that are left when others leave, `(N',)`.

    The last ones take the places of those that leave, and the others stay where they are: a state
    then moves the keys and values of few sentences.

    Args:
        stays: `(N,)` whether each sentence stays.
    """
    places: Int64Array = np.arange(np.count_nonzero(stays))
    behind = np.flatnonzero(stays[len(places) :]) + len(places)
    places[~stays[: len(places)]] = behind
    return places


def rows_of(places: Int64Array, each: int) -> Int64Array:
    """Returns the rows of the sentences at `places`, which have `each` rows side by side."""
    rows: Int64Array = (places[:, None] * each + np.arange(each)).reshape(-1)
    return rows
