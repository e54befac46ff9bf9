"""The sequences of a beam search that still grow, and the ways in which they may.

Knows scores and rows; knows no options and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked

__all__ = ["Beams", "Candidates", "best_candidates"]


@dataclass(frozen=True)
class Beams:
    """The sequences that still grow: N searches, K beams each (1 before the first step).

    Attributes:
        searches: `(N,)` numbers. A sentence has one search, or one for each group of beams.
        tokens: `(N, K, length)` ids, the prompt included; best beam first.
        scores: `(N, K)` sums of log-probabilities; -inf is a beam that only fills its row.
        sums: `(N, K, length - P)` what the score was after each token.
    """

    searches: Int64Array
    tokens: Int64Array
    scores: Float32Array
    sums: Float32Array

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return int(self.tokens.shape[2])

    @property
    def sequences(self) -> Int64Array:
        """`(N * K, length)` ids, row by row."""
        return self.tokens.reshape(-1, self.length)

    def log_probs(self, row: int, *last: float) -> tuple[float, ...]:
        """Returns the log-probability of each token of a row, and of one that follows."""
        sums = [0.0, *self.sums[divmod(row, self.scores.shape[1])].tolist(), *last]
        return tuple(np.diff(sums).tolist())

    def kept(self, keep: Int64Array) -> Beams:
        """Returns the searches `keep`, which are places or a mask."""
        return Beams(self.searches[keep], self.tokens[keep], self.scores[keep], self.sums[keep])


@dataclass(frozen=True)
class Candidates:
    """The best 2K ways to grow each search by one token, best first; all `(N, 2K)`.

    Attributes:
        scores: sums of log-probabilities; -inf is no candidate at all.
        rows: the row that each grows from.
        tokens: the token that each appends.
    """

    scores: Float32Array
    rows: Int64Array
    tokens: Int64Array


def best_candidates(ranked: Ranked, beams: Beams, wanted: int) -> Candidates:
    """Finds the best `wanted` continuations of every search among the best of its rows."""
    n, k = beams.scores.shape
    per_row = ranked.tokens.shape[1]
    totals = (ranked.scores + beams.scores.reshape(-1, 1)).reshape(n, k * per_row)
    order = np.argsort(-totals, axis=1, kind="stable")[:, :wanted]
    scores = np.take_along_axis(totals, order, axis=1)
    missing = wanted - order.shape[1]
    if missing:  # There is only one row, and V < 2K.
        order = np.pad(order, ((0, 0), (0, missing)), mode="edge")
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = order // per_row + np.arange(n)[:, None] * k
    return Candidates(scores, rows, ranked.tokens[rows, order % per_row])
