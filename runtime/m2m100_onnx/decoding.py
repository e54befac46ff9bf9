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
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.ranking import NO_CELLS, Float32Array, Int64Array, Ranked, Ranking

__all__ = ["DecoderState", "Hypothesis", "SearchOptions", "search"]

_LARGEST = (1 << 31) - 1


class DecoderState(Protocol):
    """The model side of a search: R rows, each a prefix the decoder has been fed."""

    @property
    def vocab_size(self) -> int:
        """V, the tokens there are."""
        ...

    def best(self, ranking: Ranking) -> Ranked:
        """Return each row's best next tokens; asked for once after each step."""
        ...

    def step(self, tokens: Int64Array) -> None:
        """Append `tokens` `(R, 1)`."""
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
        # Scores are float32.
        valid = _is_number(penalty) and 1e-30 <= penalty <= 1e30
        _require(valid, "repetition_penalty", "a number from 1e-30 to 1e30", penalty)
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
        prompt: `(B, P)` start and language token of each sentence.
        eos_id: the token that ends a sequence.
        options: what to search for.

    Returns:
        B lists of at most `num_hypotheses` hypotheses, best first.

    Raises:
        InvalidInputError: shapes or ids that do not fit together, or logits with NaN or +inf.
    """
    _check_arguments(state.vocab_size, prompt, eos_id, options)
    beams = _Beams(np.arange(len(prompt)), prompt[:, None], np.zeros((len(prompt), 1), np.float32))
    finished: list[list[Hypothesis]] = [[] for _ in prompt]
    while True:
        ranked = state.best(_ranking(beams, eos_id, options))
        _require(len(ranked.tokens) == beams.scores.size, "rows", "prompt's", len(ranked.tokens))
        candidates = _best_candidates(ranked, beams, options)
        ended = (candidates.tokens == eos_id) | (beams.length + 1 == options.max_length)
        _collect(finished, beams, candidates, ended, options)
        before = beams.scores.size
        rows, beams = _advance(finished, beams, candidates, ended, options)
        if not rows.size:
            return [hypotheses[: options.num_hypotheses] for hypotheses in finished]
        if not np.array_equal(rows, np.arange(before)):
            state.select(rows)
        state.step(beams.tokens[:, :, -1].reshape(-1, 1))


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


def _best_candidates(ranked: Ranked, beams: _Beams, options: SearchOptions) -> _Candidates:
    """Find the best 2K continuations of every sentence among the best 2K of its rows."""
    n, k = beams.scores.shape
    per_row, wanted = ranked.tokens.shape[1], 2 * options.beam_size
    totals = (ranked.scores + beams.scores.reshape(-1, 1)).reshape(n, k * per_row)
    order = np.argsort(-totals, axis=1, kind="stable")[:, :wanted]
    scores = np.take_along_axis(totals, order, axis=1)
    missing = wanted - order.shape[1]
    if missing:  # All there is is one row, and V < 2K.
        order = np.pad(order, ((0, 0), (0, missing)), mode="edge")
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = order // per_row + np.arange(n)[:, None] * k
    return _Candidates(scores, rows, ranked.tokens[rows, order % per_row])


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


def _ranking(beams: _Beams, eos_id: int, options: SearchOptions) -> Ranking:
    """Say what a step's scores are to undergo, in terms of rows and tokens."""
    n, k, length = beams.tokens.shape
    rows, sequences = np.arange(n * k), beams.tokens.reshape(n * k, length)
    seen, banned = NO_CELLS, [NO_CELLS]
    if options.repetition_penalty != 1:
        seen = _cells(np.repeat(rows, length), sequences.reshape(-1))
    size = options.no_repeat_ngram_size
    if 0 < size <= length:
        windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
        suffix = sequences[:, None, length - size + 1 :]
        again, starts = np.nonzero((windows[:, :, :-1] == suffix).all(axis=2))
        banned.append(_cells(again, windows[again, starts, -1]))
    tokens = [*options.suppress_tokens, *([eos_id] if length < options.min_length else [])]
    if tokens:
        banned.append(_cells(np.repeat(rows, len(tokens)), np.tile(tokens, n * k)))
    return Ranking(
        # 2K, as each of K beams has one way to end: K others are sure to remain.
        count=2 * options.beam_size,
        renormalized=options.beam_size == 1,
        repetition_penalty=options.repetition_penalty,
        seen=seen,
        banned=np.concatenate(banned),
    )


def _cells(rows: Int64Array, tokens: Int64Array) -> Int64Array:
    return np.stack([rows, tokens], axis=1).astype(np.int64, copy=False)


def _check_arguments(
    vocab_size: int, prompt: Int64Array, eos_id: int, options: SearchOptions
) -> None:
    _require(prompt.ndim == 2, "prompt", "(B, P)", prompt.shape)
    length = prompt.shape[1]
    _require(1 <= length < options.max_length, "prompt", "shorter than max_length", length)
    for token in (eos_id, *options.suppress_tokens):
        _require_int("eos_id or a suppressed token", token, 0, vocab_size - 1, "V - 1")


def _require_int(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> None:
    """Raise unless `value` is an int (no bool) from `low` to `high`, which is called `what`."""
    if high is None and type(value) is int and value > _LARGEST:
        high, what = _LARGEST, "2^31 - 1"
    accepted = f"an int, at least {low}" + (f" and at most {what} = {high}" if what else "")
    valid = type(value) is int and low <= value and (high is None or value <= high)
    _require(valid, name, accepted, value)


def _require(valid: bool, name: str, accepted: str, found: object) -> None:
    if not valid:
        raise InvalidInputError(f"{name} must be {accepted}; found {found!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
