"""Greedy and beam search over numpy arrays, one step at a time.

Knows token ids, scores and rows; knows no sessions, caches and text. The model is a `DecoderState`,
so one search runs on a bundle, on torch, or on a scripted model of five tokens.

Results are those of transformers' `generate` (5.x, `_beam_search` and `_sample` of its
`GenerationMixin`) with `forced_bos_token_id`, its oddities included: a service that moves from
there to here must not see other translations.

* The language token counts. transformers generates it, with log-probability 0, so a score is
  `sum(log_probs) / (len(tokens) - 1) ** length_penalty`; only the start token is not in the length.
  A language model's whole prompt is not in the length.
* `max_length` and `min_length` count the start token and the language token. `min_length` is
  checked before `</s>` is appended: a sequence that ends has at least `min_length + 1` tokens.
* The start token of M2M100 is `</s>`, and it is part of the history. With `no_repeat_ngram_size=1`
  no sequence ends before `max_length`; a `repetition_penalty` above 1 makes the end less likely.
* Constraints act after the softmax in beam search, and before it in greedy search (`beam_size` 1).
  So only greedy scores are renormalised over the remaining tokens, and `repetition_penalty` acts on
  log-probabilities in the one and on logits in the other.
* A step considers 2K candidates per sentence, but only the best K of them may end.

There is one difference, where transformers returns noise. With fewer continuations than beams, it
adds copies with score -1e9, or token 0. This search drops those beams: a sentence may return fewer
hypotheses than asked for, and its best unfinished sequence if nothing can end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.constraints import next_ranking
from m2m100_onnx.search.hypothesis import (
    Hypothesis,
    check_arguments,
    length_norm,
    require,
    shared_prefix,
)
from m2m100_onnx.search.state import DecoderState, Float32Array, Int64Array, Ranked, follow

__all__ = ["BeamSearch", "Hypothesis"]


class BeamSearch:
    """A search that its caller drives, step by step, until no sentence is live.

        search = BeamSearch(state, prompt, eos_id=2, options=options)
        while search.live:
            search.step()

    Between two steps the caller may stop, `drop` a sentence, take the `hypotheses` of one that has
    ended, or read the `settled` prefix of a live one. A sentence's result does not depend on the
    sentences beside it, nor on what the caller does between steps.
    """

    def __init__(
        self,
        state: DecoderState,
        prompt: Int64Array,
        *,
        eos_id: int,
        options: SearchOptions,
        given: int = 1,
    ) -> None:
        """Starts with one row per sentence; no step is made.

        Args:
            state: the decoder, which has been fed `prompt`, one row per sentence.
            prompt: `(B, P)` start token and language token of each sentence.
            eos_id: the token that ends a sequence.
            options: what to search for.
            given: tokens of the prompt that are not in the length of a sequence.

        Raises:
            InvalidInputError: shapes or ids do not fit together.
        """
        check_arguments(state.vocab_size, prompt, eos_id, options)
        self._state, self._eos_id, self._options, self._given = state, eos_id, options, given
        count = len(prompt)
        scores = np.zeros((count, 1), np.float32)
        sums = np.empty((count, 1, 0), np.float32)
        self._beams = _Beams(np.arange(count), prompt[:, None], scores, sums)
        self._finished: list[list[Hypothesis]] = [[] for _ in prompt]
        # The state follows the beams at the start of the next step. So the state is not stepped
        # after the last token, and a dropped sentence costs no `select` of its own.
        self._fed = True
        self._rows = np.arange(count)  # of the state, that the beams grow from
        self._state_rows = count

    @property
    def live(self) -> tuple[int, ...]:
        """The sentences that still grow, in order, as indices into the prompt."""
        return tuple(self._beams.sentences.tolist())

    def step(self) -> tuple[int, ...]:
        """Appends one token to every live sentence; returns the sentences that ended with it.

        Raises:
            InvalidInputError: the state's scores are NaN or +inf.
        """
        before = self._beams
        if not before.scores.size:
            return ()
        self._feed()
        options = self._options
        ranking = next_ranking(before.sequences, self._eos_id, options)
        ranked = self._state.best(ranking)
        require(len(ranked.tokens) == before.scores.size, "rows", "prompt's", len(ranked.tokens))
        candidates = _best_candidates(ranked, before, options)
        ended = (candidates.tokens == self._eos_id) | (before.length + 1 == options.max_length)
        _collect(self._finished, before, candidates, ended, options, self._given)
        self._rows, self._beams = _advance(
            self._finished, before, candidates, ended, options, self._given
        )
        self._state_rows, self._fed = before.scores.size, False
        # Not `np.setdiff1d`, which takes as long as the rest of a step.
        return tuple(sorted(set(before.sentences.tolist()).difference(self.live)))

    def drop(self, sentence: int) -> None:
        """Ends a live sentence without a result; the other sentences go on as before.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        beams = self._beams
        keep = beams.sentences != sentence
        require(not keep.all(), "sentence", f"one of the live {self.live}", sentence)
        self._finished[sentence] = []
        self._rows = self._rows.reshape(beams.scores.shape)[keep].reshape(-1)
        self._beams = _Beams(
            beams.sentences[keep], beams.tokens[keep], beams.scores[keep], beams.sums[keep]
        )

    def hypotheses(self, sentence: int) -> list[Hypothesis]:
        """Returns at most `num_hypotheses` results of a sentence, best first.

        Those of a sentence that has ended are final. Those of a live one are what has finished so
        far, and a dropped one has none.

        Raises:
            InvalidInputError: there is no such sentence.
        """
        last = len(self._finished) - 1
        require(0 <= sentence <= last, "sentence", f"0 to {last}", sentence)
        return self._finished[sentence][: self._options.num_hypotheses]

    def settled(self, sentence: int) -> tuple[int, ...]:
        """Returns the prefix that every result of a live sentence will start with.

        It is what all live beams share with each other and with the hypotheses that have finished,
        any of which may win; the prompt included.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        place = np.flatnonzero(self._beams.sentences == sentence)
        require(len(place) == 1, "sentence", f"one of the live {self.live}", sentence)
        running = self._beams.scores[place[0]] > -np.inf
        tokens = self._beams.tokens[place[0]][running]
        finished = [hypothesis.tokens for hypothesis in self._finished[sentence]]
        return shared_prefix([*map(tuple, tokens.tolist()), *finished])

    def _feed(self) -> None:
        """Lets the state follow the beams."""
        tokens = None if self._fed else self._beams.tokens
        follow(self._state, self._state_rows, self._rows, tokens)


@dataclass(frozen=True)
class _Beams:
    """The sequences that still grow: N sentences, K beams each (1 before the first step).

    Attributes:
        sentences: `(N,)` indices into the prompt.
        tokens: `(N, K, length)` ids, the prompt included; best beam first.
        scores: `(N, K)` sums of log-probabilities; -inf is a beam that only fills its row.
        sums: `(N, K, length - P)` what the score was after each token.
    """

    sentences: Int64Array
    tokens: Int64Array
    scores: Float32Array
    sums: Float32Array

    @property
    def length(self) -> int:
        return int(self.tokens.shape[2])

    @property
    def sequences(self) -> Int64Array:
        return self.tokens.reshape(-1, self.length)

    def log_probs(self, row: int, *last: float) -> tuple[float, ...]:
        """Returns the log-probability of each token of a row, and of one that follows."""
        sums = [0.0, *self.sums[divmod(row, self.scores.shape[1])].tolist(), *last]
        return tuple(np.diff(sums).tolist())


@dataclass(frozen=True)
class _Candidates:
    """The best 2K ways to grow each sentence by one token, best first; all `(N, 2K)`.

    Attributes:
        scores: sums of log-probabilities; -inf is no candidate at all.
        rows: the row that each grows from.
        tokens: the token that each appends.
    """

    scores: Float32Array
    rows: Int64Array
    tokens: Int64Array


def _best_candidates(ranked: Ranked, beams: _Beams, options: SearchOptions) -> _Candidates:
    """Finds the best 2K continuations of every sentence among the best 2K of its rows."""
    n, k = beams.scores.shape
    per_row, wanted = ranked.tokens.shape[1], 2 * options.beam_size
    totals = (ranked.scores + beams.scores.reshape(-1, 1)).reshape(n, k * per_row)
    order = np.argsort(-totals, axis=1, kind="stable")[:, :wanted]
    scores = np.take_along_axis(totals, order, axis=1)
    missing = wanted - order.shape[1]
    if missing:  # There is only one row, and V < 2K.
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
    given: int,
) -> None:
    """Adds the candidates that ended to `finished`, and keeps the best of each sentence."""
    k = options.beam_size
    sequences = beams.sequences
    scores = candidates.scores / length_norm(beams.length + 1 - given, options)
    # The second K replace beams that end; transformers lets none of them finish.
    finishing = ended[:, :k] & (candidates.scores[:, :k] > -np.inf)
    for n, column in np.argwhere(finishing):
        row = candidates.rows[n, column]
        tokens = (*sequences[row].tolist(), int(candidates.tokens[n, column]))
        log_probs = beams.log_probs(row, float(candidates.scores[n, column]))
        found = Hypothesis(tokens, float(scores[n, column]), log_probs)
        finished[beams.sentences[n]].append(found)
    for sentence in beams.sentences:
        finished[sentence].sort(key=lambda hypothesis: -hypothesis.score)  # the older wins a tie
        del finished[sentence][options.wanted :]


def _advance(
    finished: list[list[Hypothesis]],
    beams: _Beams,
    candidates: _Candidates,
    ended: npt.NDArray[np.bool_],
    options: SearchOptions,
    given: int,
) -> tuple[Int64Array, _Beams]:
    """Grows the live sentences; returns the rows they grow from, `(N' * K,)`, and the beams."""
    order = np.argsort(ended, axis=1, kind="stable")[:, : options.beam_size]
    scores = np.take_along_axis(candidates.scores, order, axis=1)
    scores[np.take_along_axis(ended, order, axis=1)] = -np.inf

    going_on = []
    for n, sentence in enumerate(beams.sentences):
        if _can_improve(finished[sentence], scores[n, 0], beams.length + 1, options, given):
            going_on.append(n)
        elif not finished[sentence]:  # Every continuation is banned; a part is better than nothing.
            score = beams.scores[n, 0] / length_norm(beams.length - given, options)
            part = tuple(beams.tokens[n, 0].tolist())
            log_probs = beams.log_probs(n * beams.scores.shape[1])
            finished[sentence].append(Hypothesis(part, float(score), log_probs))

    keep = np.array(going_on, dtype=np.int64)
    rows = np.take_along_axis(candidates.rows, order, axis=1)[keep]
    tokens = np.take_along_axis(candidates.tokens, order, axis=1)[keep]
    grown = np.concatenate([beams.sequences[rows], tokens[:, :, None]], axis=2)
    past = beams.sums[divmod(rows, beams.scores.shape[1])]
    sums = np.concatenate([past, scores[keep][:, :, None]], axis=2)
    return rows.reshape(-1), _Beams(beams.sentences[keep], grown, scores[keep], sums)


def _can_improve(
    hypotheses: list[Hypothesis],
    best_running: float,
    length: int,
    options: SearchOptions,
    given: int,
) -> bool:
    """Says whether a sentence is worth another step, as `_check_early_stop_heuristic` does.

    Args:
        hypotheses: the finished ones, best first.
        best_running: sum of log-probabilities of the best beam, -inf if none is left.
        length: tokens of a beam.
        options: what to search for.
        given: tokens of the prompt that are not in the length.
    """
    full = len(hypotheses) == options.wanted
    # Greedy search is beam search with one beam that stops at the first hypothesis.
    if full and (options.early_stopping is True or options.beam_size == 1):
        return False
    if options.early_stopping == "never" and options.length_penalty > 0:
        length = options.max_length
    worst_finished = hypotheses[-1].score if full else -math.inf
    return bool(best_running / length_norm(length - given, options) > worst_finished)
