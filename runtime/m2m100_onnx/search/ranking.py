"""From the scores of every token to the best few of each row, with bans and penalties applied.

Knows logits and log-probabilities; knows no beams, no sessions and no text. What `rank` computes
with numpy, the fused rank graph computes with operators, and so never hands out all V scores.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked, Ranking

__all__ = ["amend", "among", "rank"]


def rank(logits: Float32Array, ranking: Ranking) -> Ranked:
    """Ranks the tokens of every row; overwrites `logits` `(R, V)`.

    Raises:
        InvalidInputError: `logits` has another shape, or a logit is NaN or +inf.
    """
    if logits.ndim != 2:
        raise InvalidInputError(f"logits: expected (R, V), found shape {logits.shape}")
    if ranking.renormalized:
        _constrain(logits, np.zeros((len(logits), 1)), ranking)
        normaliser = _log_sum_exp(logits)
    else:
        normaliser = _log_sum_exp(logits)
        _constrain(logits, normaliser, ranking)
    # The normaliser shifts all of a row by the same amount. So the best logits are the best
    # log-probabilities, up to rounding (1e-7), and those of the other tokens are not computed.
    columns = _top_columns(logits, min(ranking.count, logits.shape[1]))
    best = np.take_along_axis(logits, columns, axis=1) - normaliser
    ranked = Ranked(best.astype(np.float32), columns)
    if not len(ranking.asked):
        return ranked
    rows, tokens = ranking.asked.T
    asked = (logits[rows, tokens] - normaliser[rows, 0]).astype(np.float32)
    return replace(ranked, asked=asked)


def amend(ranked: Ranked, cell_scores: Float32Array, ranking: Ranking) -> Ranked:
    """Applies penalty and bans, on log-probabilities, to a ranking that was made without them.

    Args:
        ranked: the best `ranking.count + ranking.most_cells(R)` of every row, or all V.
        cell_scores: `(N + Q,)` log-probabilities of `ranking.seen` and then of `ranking.asked`.
        ranking: what the search wants; not `renormalized`.
    """
    seen_scores, asked = np.split(cell_scores, [len(ranking.seen)])
    found = _amended(ranked, seen_scores, ranking)
    if not len(ranking.asked):
        return found
    is_seen = among(ranking.asked, ranking.seen)
    asked = np.where(is_seen, _penalized(asked, ranking), asked)
    asked[among(ranking.asked, ranking.banned)] = -np.inf
    return replace(found, asked=asked)


def _penalized(scores: Float32Array, ranking: Ranking) -> Float32Array:
    """Returns log-probabilities with the repetition penalty."""
    penalty = ranking.repetition_penalty
    return np.where(scores < 0, scores * penalty, scores / penalty).astype(np.float32)


def _amended(ranked: Ranked, seen_scores: Float32Array, ranking: Ranking) -> Ranked:
    rows, wanted = len(ranked.tokens), min(ranking.count, ranked.tokens.shape[1])
    if not len(ranking.seen) and not len(ranking.banned):
        return ranked
    if not len(ranking.seen):
        # The usual case, for instance a forced length: banned tokens go last, the others stay.
        banned = among(_numbered(rows, ranked.tokens), ranking.banned)
        order = np.argsort(banned, axis=1, kind="stable")[:, :wanted]
        scores = np.where(banned, np.float32(-np.inf), ranked.scores)
        return _taken(scores, ranked.tokens, order)
    # All cells are removed; those that are only penalized come back with their new score.
    cells = np.unique(np.concatenate([ranking.seen, ranking.banned]), axis=0)
    scores = ranked.scores.copy()
    scores[among(_numbered(rows, ranked.tokens), cells)] = -np.inf
    seen, first = np.unique(ranking.seen, axis=0, return_index=True)
    penalized = _penalized(seen_scores[first], ranking)
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
    """Returns the columns `order` `(R, k)` of scores and tokens."""
    return Ranked(np.take_along_axis(scores, order, 1), np.take_along_axis(tokens, order, 1))


def _numbered(rows: int, tokens: Int64Array) -> Int64Array:
    """Returns `(R, k)` tokens as `(R, k, 2)` cells."""
    return np.stack(np.broadcast_arrays(np.arange(rows)[:, None], tokens), axis=-1)


def among(cells: Int64Array, others: Int64Array) -> npt.NDArray[np.bool_]:
    """Says which of `cells` `(..., 2)` are among `others` `(N, 2)`."""
    width = 1 + max(int(cells[..., 1].max(initial=0)), int(others[:, 1].max(initial=0)))
    return np.isin(cells[..., 0] * width + cells[..., 1], others[:, 0] * width + others[:, 1])


def _constrain(logits: Float32Array, normaliser: npt.NDArray[np.float64], ranking: Ranking) -> None:
    """Applies penalty and bans in place; the penalty acts on `logits - normaliser` `(R, 1)`."""
    if len(ranking.seen):
        rows, tokens = ranking.seen.T
        shift = normaliser[rows, 0]
        score = logits[rows, tokens] - shift
        penalty = ranking.repetition_penalty
        score = np.where(score < 0, score * penalty, score / penalty) + shift
        logits[rows, tokens] = score.astype(np.float32)
    logits[ranking.banned[:, 0], ranking.banned[:, 1]] = -np.inf


def _log_sum_exp(logits: Float32Array) -> npt.NDArray[np.float64]:
    """Returns `log(sum(exp(logits)))` of each row, `(R, 1)`; 0 where all of a row is banned."""
    normaliser = np.zeros((len(logits), 1))
    # One buffer for all rows stays in the processor's cache; an (R, V) temporary would not.
    buffer = np.empty(logits.shape[1], np.float32)
    for index, row in enumerate(logits):
        peak = row.max()
        if not peak < np.inf:
            raise InvalidInputError(
                f"logits: expected finite numbers, found a row with maximum {peak}"
            )
        if peak > -np.inf:
            np.subtract(row, peak, out=buffer)
            np.exp(buffer, out=buffer)
            normaliser[index] = float(peak) + math.log(buffer.sum())
    return normaliser


def _top_columns(values: Float32Array, count: int) -> Int64Array:
    """Finds the `count` largest of each row, exactly: largest first, ties by lowest column.

    Sorting or partitioning 128,112 columns would dominate a step. So a row is cut into blocks. Its
    best `count` elements lie in the `count` blocks with the highest maxima: `count` elements are
    ahead of the best one of any other block (ties too, since blocks are in column order). The
    choice of blocks and the choice inside them are two smaller problems of the same kind.

    `values` is `(R, C)` without NaN, `count` 1 to C; returns `(R, count)` columns.
    """
    columns = values.shape[1]
    width = math.isqrt(columns // count)  # makes the two smaller problems equal in size
    if width < 4:
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    whole = columns - columns % width
    maxima = values[:, :whole].reshape(len(values), whole // width, width).max(axis=2)
    if whole < columns:
        maxima = np.concatenate([maxima, values[:, whole:].max(axis=1, keepdims=True)], axis=1)
    blocks = np.sort(_top_columns(maxima, count), axis=1)
    inside = (blocks[:, :, None] * width + np.arange(width)).reshape(len(values), count * width)
    # The last block may reach past the row; that part is last in order, so it loses every tie.
    chosen = np.take_along_axis(values, np.minimum(inside, columns - 1), axis=1)
    chosen[inside >= columns] = -np.inf
    return np.take_along_axis(inside, _top_columns(chosen, count), axis=1)
