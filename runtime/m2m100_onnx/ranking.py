"""From the scores of every token to the best few of each row, with bans and penalties applied.

Knows logits and log-probabilities; knows no beams, no sessions and no text. What `rank` does here
with numpy, the fused step graph does with operators, so that it never hands out all V scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from m2m100_onnx.errors import InvalidInputError

__all__ = [
    "NO_CELLS",
    "Float32Array",
    "Int64Array",
    "LogitsState",
    "Ranked",
    "Ranking",
    "amend",
    "among",
    "rank",
]

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]

NO_CELLS: Int64Array = np.empty((0, 2), np.int64)
"""No (row, token) at all."""


@dataclass(frozen=True)
class Ranking:
    """What a row's scores undergo, and how many of the best are wanted.

    Attributes:
        count: best tokens wanted a row.
        renormalized: whether penalty and bans act before the softmax, as in greedy search, so that
            the tokens that remain share all probability; else they act on log-probabilities.
        repetition_penalty: scores of `seen` cells are multiplied by it below 0, divided above.
        seen: `(N, 2)` rows and tokens; one that comes twice counts once.
        banned: `(M, 2)` rows and tokens that must not come.
    """

    count: int
    renormalized: bool = False
    repetition_penalty: float = 1.0
    seen: Int64Array = field(default_factory=lambda: NO_CELLS)
    banned: Int64Array = field(default_factory=lambda: NO_CELLS)

    def most_cells(self, rows: int) -> int:
        """The most cells, seen or banned, that one of `rows` rows has."""
        cells = np.concatenate([self.seen, self.banned])
        return int(np.bincount(cells[:, 0], minlength=rows).max(initial=0))


@dataclass(frozen=True)
class Ranked:
    """The best tokens of every row, best first; ties go to the lowest token.

    Attributes:
        scores: `(R, k)` log-probabilities, k the least of `Ranking.count` and V; -inf is banned.
        tokens: `(R, k)` ids.
    """

    scores: Float32Array
    tokens: Int64Array


class _Logits(Protocol):
    def step(self, tokens: Int64Array) -> Float32Array: ...
    def select(self, rows: Int64Array) -> None: ...


class LogitsState:
    """A decoder that gives all logits, ranked for the search.

    Args:
        state: has been fed the prompt; its `step` returns `(R, V)` logits, free to be overwritten.
        logits: `(B, V)` those after the prompt, which may be overwritten too.
    """

    def __init__(self, state: _Logits, logits: Float32Array) -> None:
        self._state = state
        self._logits = logits
        self.vocab_size: int = logits.shape[-1]

    def best(self, ranking: Ranking) -> Ranked:
        """Return each row's best next tokens.

        Raises:
            InvalidInputError: logits of another shape, or one that is NaN or +inf.
        """
        if self._logits.ndim != 2:
            raise InvalidInputError(f"logits must be (R, V); found {self._logits.shape}")
        return rank(self._logits, ranking)

    def step(self, tokens: Int64Array) -> None:
        """Append `tokens` `(R, 1)`."""
        self._logits = self._state.step(tokens)

    def select(self, rows: Int64Array) -> None:
        """Make row i a copy of old row `rows[i]`."""
        self._state.select(rows)


def rank(logits: Float32Array, ranking: Ranking) -> Ranked:
    """Rank the tokens of every row; overwrites `logits` `(R, V)`.

    Raises:
        InvalidInputError: a logit is NaN or +inf.
    """
    if ranking.renormalized:
        _constrain(logits, np.zeros((len(logits), 1)), ranking)
        normaliser = _log_sum_exp(logits)
    else:
        normaliser = _log_sum_exp(logits)
        _constrain(logits, normaliser, ranking)
    # The normaliser shifts a whole row alike, so its best logits are its best log-probabilities,
    # and those of the rest need not exist. Only rounding (1e-7) can tell.
    columns = _top_columns(logits, min(ranking.count, logits.shape[1]))
    best = np.take_along_axis(logits, columns, axis=1) - normaliser
    return Ranked(best.astype(np.float32), columns)


def amend(ranked: Ranked, seen_scores: Float32Array, ranking: Ranking) -> Ranked:
    """Apply penalty and bans to what was ranked without them, on log-probabilities.

    Args:
        ranked: the best `ranking.count + ranking.most_cells(R)` of every row, or all V.
        seen_scores: `(N,)` log-probabilities of `ranking.seen`.
        ranking: what is asked for; not `renormalized`.
    """
    rows, wanted = len(ranked.tokens), min(ranking.count, ranked.tokens.shape[1])
    if not len(ranking.seen) and not len(ranking.banned):
        return ranked
    if not len(ranking.seen):
        # The usual case, at every step of a forced length: the banned go last, the others stay.
        banned = among(_numbered(rows, ranked.tokens), ranking.banned)
        order = np.argsort(banned, axis=1, kind="stable")[:, :wanted]
        scores = np.where(banned, np.float32(-np.inf), ranked.scores)
        return _taken(scores, ranked.tokens, order)
    # The cells leave, and those that were only penalized come back with their new score.
    cells = np.unique(np.concatenate([ranking.seen, ranking.banned]), axis=0)
    scores = ranked.scores.copy()
    scores[among(_numbered(rows, ranked.tokens), cells)] = -np.inf
    seen, first = np.unique(ranking.seen, axis=0, return_index=True)
    penalized = seen_scores[first]
    penalty = ranking.repetition_penalty
    penalized = np.where(penalized < 0, penalized * penalty, penalized / penalty)
    penalized[among(seen, ranking.banned)] = -np.inf
    place = np.arange(len(seen)) - np.searchsorted(seen[:, 0], seen[:, 0])  # within its row
    width = int(place.max(initial=-1)) + 1
    back = np.full((rows, width), -np.inf, np.float32)
    tokens = np.zeros((rows, width), np.int64)
    back[seen[:, 0], place], tokens[seen[:, 0], place] = penalized, seen[:, 1]
    scores = np.concatenate([scores, back], axis=1)
    tokens = np.concatenate([ranked.tokens, tokens], axis=1)
    return _taken(scores, tokens, np.lexsort((tokens, -scores), axis=1)[:, :wanted])


def _taken(scores: Float32Array, tokens: Int64Array, order: Int64Array) -> Ranked:
    """The columns `order` `(R, k)` of scores and tokens."""
    return Ranked(np.take_along_axis(scores, order, 1), np.take_along_axis(tokens, order, 1))


def _numbered(rows: int, tokens: Int64Array) -> Int64Array:
    """`(R, k)` tokens as `(R, k, 2)` rows and tokens."""
    return np.stack(np.broadcast_arrays(np.arange(rows)[:, None], tokens), axis=-1)


def among(cells: Int64Array, others: Int64Array) -> npt.NDArray[np.bool_]:
    """Which of `cells` `(..., 2)` are among `others` `(N, 2)`."""
    width = 1 + max(int(cells[..., 1].max(initial=0)), int(others[:, 1].max(initial=0)))
    return np.isin(cells[..., 0] * width + cells[..., 1], others[:, 0] * width + others[:, 1])


def _constrain(logits: Float32Array, normaliser: npt.NDArray[np.float64], ranking: Ranking) -> None:
    """Apply penalty and bans in place; the penalty works on `logits - normaliser` `(R, 1)`."""
    if len(ranking.seen):
        rows, tokens = ranking.seen.T
        shift = normaliser[rows, 0]
        score = logits[rows, tokens] - shift
        penalty = ranking.repetition_penalty
        score = np.where(score < 0, score * penalty, score / penalty) + shift
        logits[rows, tokens] = score.astype(np.float32)
    logits[ranking.banned[:, 0], ranking.banned[:, 1]] = -np.inf


def _log_sum_exp(logits: Float32Array) -> npt.NDArray[np.float64]:
    """Return `log(sum(exp(logits)))` of each row, `(R, 1)`; 0 where all of a row is forbidden."""
    normaliser = np.zeros((len(logits), 1))
    # Row by row into one buffer: it stays in the processor's cache, an (R, V) temporary would not.
    buffer = np.empty(logits.shape[1], np.float32)
    for index, row in enumerate(logits):
        peak = row.max()
        if not peak < np.inf:
            raise InvalidInputError(f"logits must be finite; found a row with maximum {peak}")
        if peak > -np.inf:
            np.subtract(row, peak, out=buffer)
            np.exp(buffer, out=buffer)
            normaliser[index] = float(peak) + math.log(buffer.sum())
    return normaliser


def _top_columns(values: Float32Array, count: int) -> Int64Array:
    """Find the `count` largest of each row, exactly: largest first, ties by lowest column.

    Sorting or partitioning 128,112 columns would dominate the step. Cut a row into blocks instead:
    its best `count` elements lie in the `count` blocks of highest maxima, because any other block
    has `count` elements ahead of its best (ties too: blocks are in column order). Choosing the
    blocks, and then choosing inside them, are two smaller problems of the same kind.

    `values` is `(R, C)` without NaN, `count` 1 to C; returns `(R, count)` columns.
    """
    columns = values.shape[1]
    width = math.isqrt(columns // count)  # makes the two smaller problems equally large
    if width < 4:
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    whole = columns - columns % width
    maxima = values[:, :whole].reshape(len(values), whole // width, width).max(axis=2)
    if whole < columns:
        maxima = np.concatenate([maxima, values[:, whole:].max(axis=1, keepdims=True)], axis=1)
    blocks = np.sort(_top_columns(maxima, count), axis=1)
    inside = (blocks[:, :, None] * width + np.arange(width)).reshape(len(values), count * width)
    # The last block may stick out; what it has there is last in order, so it loses every tie.
    chosen = np.take_along_axis(values, np.minimum(inside, columns - 1), axis=1)
    chosen[inside >= columns] = -np.inf
    return np.take_along_axis(inside, _top_columns(chosen, count), axis=1)
