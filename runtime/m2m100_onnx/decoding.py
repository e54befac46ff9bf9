"""Greedy and beam search over numpy arrays.

This file knows token ids, scores and rows. It refuses to know sessions, caches and text: the model
is a `DecoderState`, so one search runs on a bundle, on torch, or on a scripted five-token model.

The results are those of transformers' `generate` (5.x, `_beam_search` and `_sample` of its
`GenerationMixin`) with `forced_bos_token_id`, oddities included, because a service that moves from
there to here must not see other translations:

* The language token counts. transformers generates it, at log-probability 0, so a score is
  `sum(log_probs) / (len(tokens) - 1) ** length_penalty`: only the start token is not in the length.
* `max_length` and `min_length` count the start and the language token. `min_length` is checked
  before `</s>` is appended: a sequence that ends has at least `min_length + 1` tokens.
* The start token of M2M100 is `</s>`, and it is history: with `no_repeat_ngram_size=1` nothing ends
  before `max_length`, and a `repetition_penalty` above 1 makes the end less likely.
* Constraints act after the softmax in beam search, before it in greedy search (`beam_size` 1). So
  only greedy scores are renormalised over the tokens that remain, and `repetition_penalty` works
  on log-probabilities in the one and on logits in the other.
* 2K candidates a sentence are looked at, but only the best K of them may end.

One difference, where transformers returns noise: with fewer continuations left than beams, it fills
up with copies scored -1e9, or with token 0. Here those beams are dropped: a sentence may return
fewer hypotheses than asked for, and if nothing could end, its best unfinished sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from m2m100_onnx.errors import InvalidInputError

__all__ = ["DecoderState", "Float32Array", "Hypothesis", "Int64Array", "SearchOptions", "search"]

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]


class DecoderState(Protocol):
    """The model side of a search: R rows, each a prefix the decoder has been fed."""

    def step(self, tokens: Int64Array) -> Float32Array:
        """Append `tokens` `(R, 1)`; return `(R, V)` logits, which the caller may overwrite."""
        ...

    def select(self, rows: Int64Array) -> None:
        """Make row i a copy of old row `rows[i]`, for all of `rows` `(R',)`.

        Covers beam expansion, beam reordering and dropping finished sentences.
        """
        ...


@dataclass(frozen=True)
class SearchOptions:
    """What to search for; every field means what it means in transformers' `GenerationConfig`.

    Attributes:
        beam_size: beams K a sentence; 1 is greedy search.
        num_hypotheses: results a sentence; at most `beam_size`.
        max_length: most tokens in a sequence, start and language token included.
        min_length: `</s>` is forbidden while a sequence is shorter than this.
        length_penalty: a score is divided by the length to this power; above 0 favours long ones.
        early_stopping: True stops a sentence at K finished hypotheses; False when its best beam
            scores no better than the worst of them; "never" lets that beam hope for `max_length`.
        no_repeat_ngram_size: no n-gram of this size comes twice in a sequence; 0 is off.
        repetition_penalty: above 1 makes tokens of the sequence less likely (CTRL, Keskar 2019).
        suppress_tokens: ids that are never generated.

    Raises:
        InvalidInputError: a value is of the wrong kind or out of range.
    """

    beam_size: int = 5
    num_hypotheses: int = 1
    max_length: int = 200
    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_int("beam_size", self.beam_size, 1)
        _require_int("num_hypotheses", self.num_hypotheses, 1, self.beam_size, "beam_size")
        _require_int("max_length", self.max_length, 3)
        _require_int("min_length", self.min_length, 0, self.max_length, "max_length")
        _require_int("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        # Beyond 1e30 the length norm leaves float32, and the order of hypotheses is lost.
        penalty, bound = self.length_penalty, 30 / math.log10(self.max_length)
        accepted = f"a number from -{bound:.3g} to {bound:.3g} (for this max_length)"
        _require(_is_number(penalty) and abs(penalty) <= bound, "length_penalty", accepted, penalty)
        penalty = self.repetition_penalty
        valid = _is_number(penalty) and 0 < penalty < math.inf
        _require(valid, "repetition_penalty", "a finite number above 0", penalty)
        stopping = self.early_stopping
        valid = isinstance(stopping, bool) or stopping == "never"
        _require(valid, "early_stopping", 'True, False or "never"', stopping)
        tokens = self.suppress_tokens
        _require(isinstance(tokens, tuple), "suppress_tokens", "a tuple of token ids", tokens)
        for token in tokens:
            _require_int("a token of suppress_tokens", token, 0)


@dataclass(frozen=True)
class Hypothesis:
    """One result of a search.

    Attributes:
        tokens: start, language, ..., `</s>` (absent where `max_length` cut it); no padding.
        score: `sum(log_probs) / (len(tokens) - 1) ** length_penalty`, as `sequences_scores`.
    """

    tokens: tuple[int, ...]
    score: float


def search(
    state: DecoderState,
    logits: Float32Array,
    prompt: Int64Array,
    *,
    eos_id: int,
    options: SearchOptions,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of every sentence, the same whatever else is in the batch.

    The state starts with one row a sentence. After the first choice a sentence has K rows, side by
    side and in the order of the sentences; one that is done leaves, and no step follows the last.

    Args:
        state: has been fed `prompt`, one row a sentence.
        logits: `(B, V)` scores of the token after the prompt; may be overwritten.
        prompt: `(B, P)` start and language token of each sentence.
        eos_id: the token that ends a sequence.
        options: what to search for.

    Returns:
        B lists of at most `num_hypotheses` hypotheses, best first.

    Raises:
        InvalidInputError: shapes or ids that do not fit together, or logits with NaN or +inf.
    """
    _check_arguments(logits, prompt, eos_id, options)
    beams = _Beams(np.arange(len(prompt)), prompt[:, None], np.zeros((len(prompt), 1), np.float32))
    finished: list[list[Hypothesis]] = [[] for _ in prompt]
    while True:
        candidates = _best_candidates(logits, beams, eos_id, options)
        ended = (candidates.tokens == eos_id) | (beams.length + 1 == options.max_length)
        _collect(finished, beams, candidates, ended, options)
        rows, beams = _advance(finished, beams, candidates, ended, options)
        if not rows.size:
            return [hypotheses[: options.num_hypotheses] for hypotheses in finished]
        if not np.array_equal(rows, np.arange(len(logits))):
            state.select(rows)
        logits = state.step(beams.tokens[:, :, -1].reshape(-1, 1))


@dataclass(frozen=True)
class _Beams:
    """The sequences that still grow: N sentences, K beams each (1 before the first choice).

    Attributes:
        sentences: `(N,)` which sentence of the batch.
        tokens: `(N, K, length)` ids, the prompt included; best beam first.
        scores: `(N, K)` sums of log-probabilities; -inf is a beam that only fills its row.
    """

    sentences: Int64Array
    tokens: Int64Array
    scores: Float32Array

    @property
    def length(self) -> int:
        return int(self.tokens.shape[2])


@dataclass(frozen=True)
class _Candidates:
    """The best 2K ways to grow each sentence by one token, best first; all `(N, 2K)`.

    Attributes:
        scores: sums of log-probabilities; -inf is not a candidate at all.
        rows: the row each grows from.
        tokens: the token each appends.
    """

    scores: Float32Array
    rows: Int64Array
    tokens: Int64Array


def _best_candidates(
    logits: Float32Array, beams: _Beams, eos_id: int, options: SearchOptions
) -> _Candidates:
    """Find the best 2K continuations of every sentence; overwrites `logits` `(N * K, V)`.

    2K, as each of K beams has one way to end: K others are sure to remain.
    """
    n, k, length = beams.tokens.shape
    sequences = beams.tokens.reshape(n * k, length)
    if options.beam_size == 1:  # the order of the two is transformers', see the top of the file
        _constrain(logits, np.zeros((n * k, 1)), sequences, eos_id, options)
        normaliser = _log_sum_exp(logits)
    else:
        normaliser = _log_sum_exp(logits)
        _constrain(logits, normaliser, sequences, eos_id, options)

    # Normaliser and score shift a whole row alike, so its best logits are its best continuations
    # and the log-probabilities of the rest need not exist. Only rounding (1e-7) can tell.
    wanted = 2 * options.beam_size
    columns = _top_columns(logits, min(wanted, logits.shape[1]))
    log_probs = (np.take_along_axis(logits, columns, axis=1) - normaliser).astype(np.float32)
    totals = (log_probs + beams.scores.reshape(-1, 1)).reshape(n, k * columns.shape[1])

    order = np.argsort(-totals, axis=1, kind="stable")[:, :wanted]
    missing = wanted - order.shape[1]  # above 0 only if all there is is one row, and V < 2K
    order = np.pad(order, ((0, 0), (0, missing)), mode="edge")
    scores = np.take_along_axis(totals, order, axis=1)
    scores[:, wanted - missing :] = -np.inf
    rows = order // columns.shape[1] + np.arange(n)[:, None] * k
    return _Candidates(scores, rows, columns[rows, order % columns.shape[1]])


def _collect(
    finished: list[list[Hypothesis]],
    beams: _Beams,
    candidates: _Candidates,
    ended: npt.NDArray[np.bool_],
    options: SearchOptions,
) -> None:
    """Add the candidates that ended to `finished`, and keep the best K of each sentence."""
    k = options.beam_size
    sequences = beams.tokens.reshape(-1, beams.length)
    scores = candidates.scores / _length_norm(beams.length + 1, options)
    # The second K are spares for beams that end; transformers lets none of them finish.
    finishing = ended[:, :k] & (candidates.scores[:, :k] > -np.inf)
    for n, column in np.argwhere(finishing):
        prefix = sequences[candidates.rows[n, column]].tolist()
        tokens = (*prefix, int(candidates.tokens[n, column]))
        finished[beams.sentences[n]].append(Hypothesis(tokens, float(scores[n, column])))
    for sentence in beams.sentences:
        finished[sentence].sort(key=lambda hypothesis: -hypothesis.score)  # the older wins a tie
        del finished[sentence][k:]


def _advance(
    finished: list[list[Hypothesis]],
    beams: _Beams,
    candidates: _Candidates,
    ended: npt.NDArray[np.bool_],
    options: SearchOptions,
) -> tuple[Int64Array, _Beams]:
    """Grow the sentences that go on; return the rows they grow from, `(N' * K,)`, and the beams."""
    order = np.argsort(ended, axis=1, kind="stable")[:, : options.beam_size]
    scores = np.take_along_axis(candidates.scores, order, axis=1)
    scores[np.take_along_axis(ended, order, axis=1)] = -np.inf

    going_on = []
    for n, sentence in enumerate(beams.sentences):
        if _can_improve(finished[sentence], scores[n, 0], beams.length + 1, options):
            going_on.append(n)
        elif not finished[sentence]:  # every continuation is forbidden: a part is better than none
            score = beams.scores[n, 0] / _length_norm(beams.length, options)
            finished[sentence].append(Hypothesis(tuple(beams.tokens[n, 0].tolist()), float(score)))

    keep = np.array(going_on, dtype=np.int64)
    rows = np.take_along_axis(candidates.rows, order, axis=1)[keep]
    tokens = np.take_along_axis(candidates.tokens, order, axis=1)[keep]
    prefixes = beams.tokens.reshape(-1, beams.length)[rows]
    grown = np.concatenate([prefixes, tokens[:, :, None]], axis=2)
    return rows.reshape(-1), _Beams(beams.sentences[keep], grown, scores[keep])


def _can_improve(
    hypotheses: list[Hypothesis], best_running: float, length: int, options: SearchOptions
) -> bool:
    """Say whether a sentence is worth another step, as `_check_early_stop_heuristic` does.

    `hypotheses` are the finished ones, best first; `best_running` is the sum of log-probabilities
    of the best beam, -inf if none is left; `length` counts the tokens of a beam.
    """
    full = len(hypotheses) == options.beam_size
    # Greedy search is beam search with one beam that stops at the first hypothesis.
    if full and (options.early_stopping is True or options.beam_size == 1):
        return False
    if options.early_stopping == "never" and options.length_penalty > 0:
        length = options.max_length
    worst_finished = hypotheses[-1].score if full else -math.inf
    return bool(best_running / _length_norm(length, options) > worst_finished)


def _length_norm(length: int, options: SearchOptions) -> float:
    """Return what a score is divided by; the language token counts, the start token does not."""
    return float((length - 1) ** options.length_penalty)


def _constrain(
    logits: Float32Array,
    normaliser: npt.NDArray[np.float64],
    sequences: Int64Array,
    eos_id: int,
    options: SearchOptions,
) -> None:
    """Apply penalties and bans to `logits` in place, in the order of transformers' processors.

    `sequences` are all tokens so far, `(R, length)`; the repetition penalty works on
    `logits - normaliser`, `(R, V)` less `(R, 1)`.
    """
    penalty = options.repetition_penalty
    if penalty != 1:
        seen = np.take_along_axis(logits, sequences, axis=1) - normaliser
        seen = np.where(seen < 0, seen * penalty, seen / penalty) + normaliser
        np.put_along_axis(logits, sequences, seen.astype(np.float32), axis=1)
    size, length = options.no_repeat_ngram_size, sequences.shape[1]
    if 0 < size <= length:
        windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
        suffix = sequences[:, None, length - size + 1 :]
        rows, starts = np.nonzero((windows[:, :, :-1] == suffix).all(axis=2))
        logits[rows, windows[rows, starts, -1]] = -np.inf
    if length < options.min_length:
        logits[:, eos_id] = -np.inf
    logits[:, list(options.suppress_tokens)] = -np.inf


def _log_sum_exp(logits: Float32Array) -> npt.NDArray[np.float64]:
    """Return `log(sum(exp(logits)))` of each row, `(R, 1)`; 0 where all of a row is forbidden."""
    normaliser = np.zeros((len(logits), 1))
    # Row by row into one buffer: it stays in the processor's cache, an (R, V) temporary would not.
    buffer = np.empty(logits.shape[1], np.float32)
    for index, row in enumerate(logits):
        peak = row.max()
        _require(bool(peak < np.inf), "logits", "finite", f"a row with maximum {peak}")
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


def _check_arguments(
    logits: Float32Array, prompt: Int64Array, eos_id: int, options: SearchOptions
) -> None:
    shapes = (logits.shape, prompt.shape)
    valid = logits.ndim == prompt.ndim == 2 and len(logits) == len(prompt)
    _require(valid, "logits and prompt", "(B, V) and (B, P)", shapes)
    length = prompt.shape[1]
    _require(1 <= length < options.max_length, "prompt", "shorter than max_length", length)
    for token in (eos_id, *options.suppress_tokens):
        _require_int("eos_id or a suppressed token", token, 0, logits.shape[1] - 1, "V - 1")


def _require_int(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> None:
    """Raise unless `value` is an int (no bool) from `low` to `high`, which is called `what`."""
    accepted = f"an int, at least {low}" + (f" and at most {what} = {high}" if what else "")
    valid = type(value) is int and low <= value and (high is None or value <= high)
    _require(valid, name, accepted, value)


def _require(valid: bool, name: str, accepted: str, found: object) -> None:
    if not valid:
        raise InvalidInputError(f"{name} must be {accepted}; found {found!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
