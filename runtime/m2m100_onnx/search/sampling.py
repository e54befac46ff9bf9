"""Sampling over numpy arrays, one step at a time: each token is drawn by its probability.

Knows token ids, scores and rows; knows no sessions, caches and text. Temperature, `top_k`, `top_p`
and `min_p` act in the order of transformers' `generate` (5.x, `_get_logits_processor` of its
`GenerationMixin`), after the constraints. The random numbers are this project's own: those of a
text depend on the seed and the text alone, where torch's depend on the batch.

A hypothesis has the score that greedy search would give it: the model's log-probabilities, not
those after the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.constraints import next_ranking
from m2m100_onnx.search.demands import NO_DEMANDS, Demands
from m2m100_onnx.search.hypothesis import (
    Hypothesis,
    check_arguments,
    length_norm,
    require,
    shared_prefix,
)
from m2m100_onnx.search.state import (
    DecoderState,
    Float32Array,
    Int64Array,
    Ranked,
    Ranking,
    follow,
    left,
)

__all__ = ["SamplingSearch", "chances"]


class SamplingSearch:
    """A search that its caller drives as it drives a `BeamSearch`.

    A sentence has `num_hypotheses` samples, which are independent, and stays until all of them have
    ended.

    Attributes:
        state: the decoder.
    """

    def __init__(
        self,
        state: DecoderState,
        prompt: Int64Array,
        *,
        eos_id: int,
        options: SearchOptions,
        keys: Sequence[Sequence[int]],
        given: int = 1,
        demands: Demands = NO_DEMANDS,
    ) -> None:
        """Starts with one row per sentence; no step is made.

        Args:
            state: the decoder, which has been fed `prompt`, one row per sentence.
            prompt: `(B, P)` first tokens of each sentence.
            eos_id: the token that ends a sequence.
            options: what to draw from.
            keys: what tells the sentences apart: equal ones have equal samples with one seed.
            given: tokens of the prompt that are not in the length of a sequence.
            demands: what ends sequences beside `</s>` and `max_length`; they have no terms.

        Raises:
            InvalidInputError: shapes or ids do not fit together.
        """
        check_arguments(state.vocab_size, prompt, eos_id, options)
        self._demands = demands
        self._limits = demands.most(np.arange(len(prompt)), options.max_length)
        self.state, self._eos_id, self._options, self._given = state, eos_id, options, given
        samples = options.num_hypotheses
        self._sentences: Int64Array = np.arange(len(prompt))
        # (N, S, length), (N, S), (N, S): the rows of the sentences that are live.
        self._tokens = np.repeat(prompt[:, None], samples, axis=1)
        self._scores = np.zeros((len(prompt), samples), np.float32)
        self._log_probs = np.empty((len(prompt), samples, 0), np.float32)
        self._running = np.ones((len(prompt), samples), bool)
        self._draws = [[_Draws(options.seed, n, key) for n in range(samples)] for key in keys]
        self._found: list[list[Hypothesis | None]] = [[None] * samples for _ in prompt]
        # The state follows at the start of the next step, see `BeamSearch`.
        self._fed = True
        self._rows: Int64Array = np.arange(len(prompt))
        self._state_rows = len(prompt)

    @property
    def live(self) -> tuple[int, ...]:
        """The sentences that still grow, in order, as indices into the prompt."""
        return tuple(sorted(self._sentences.tolist()))

    def step(self) -> tuple[int, ...]:
        """Appends one token to every sample; returns the sentences that ended with it.

        Raises:
            InvalidInputError: the state's scores are NaN or +inf.
        """
        return self.answer(self.state.best(self.ask())) if self.live else ()

    def ask(self) -> Ranking:
        """Begins a step, as `BeamSearch.ask` does."""
        self._feed()
        return next_ranking(self._fed_rows, self._eos_id, self._options)

    def answer(self, ranked: Ranked) -> tuple[int, ...]:
        """Makes the step that `ask` has begun; result and errors are those of `step`."""
        before, seen = self.live, self._fed_rows
        count, samples, _ = self._tokens.shape
        require(len(ranked.tokens) == len(seen), "rows", "prompt's", len(ranked.tokens))
        places = np.arange(len(seen))
        if len(seen) == count:
            places = np.repeat(places, samples)
        shares = chances(ranked.scores, self._options)[places]
        draws = np.array([draw() for n in self._sentences for draw in self._draws[n]])
        columns = _drawn(shares, draws)
        scores = ranked.scores[places, columns].reshape(count, samples)
        tokens = ranked.tokens[places, columns].reshape(count, samples)
        self._append(tokens, scores)
        self._state_rows, self._fed = len(seen), False
        self._rows = places.reshape(count, samples)
        self._leave()
        return tuple(sorted(set(before).difference(self.live)))

    def drop(self, sentence: int) -> None:
        """Ends a live sentence without a result; the other sentences go on as before.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        keep = self._sentences != sentence
        require(not keep.all(), "sentence", f"one of the live {self.live}", sentence)
        self._found[sentence] = []
        self._keep(keep)

    def hypotheses(self, sentence: int) -> list[Hypothesis]:
        """Returns the samples of a sentence that have ended, in the order of their numbers.

        Raises:
            InvalidInputError: there is no such sentence.
        """
        last = len(self._found) - 1
        require(0 <= sentence <= last, "sentence", f"0 to {last}", sentence)
        return [found for found in self._found[sentence] if found is not None]

    def settled(self, sentence: int) -> tuple[int, ...]:
        """Returns the prefix that all samples of a live sentence start with, prompt included.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        place = np.flatnonzero(self._sentences == sentence)
        require(len(place) == 1, "sentence", f"one of the live {self.live}", sentence)
        tokens = self._tokens[place[0]][self._running[place[0]]]
        ended = [found.tokens for found in self._found[sentence] if found is not None]
        return shared_prefix([*map(tuple, tokens.tolist()), *ended])

    @property
    def _fed_rows(self) -> Int64Array:
        """`(R, length)` the rows of the state: at first one a sentence, whose samples are alike."""
        count, _, length = self._tokens.shape
        return self._tokens[:, 0] if self._state_rows == count else self._tokens.reshape(-1, length)

    def _feed(self) -> None:
        """Lets the state follow the samples."""
        rows = self._rows.reshape(-1)
        follow(self.state, self._state_rows, rows, None if self._fed else self._tokens)
        self._state_rows = len(rows)

    def _append(self, tokens: Int64Array, scores: Float32Array) -> None:
        """Appends `(N, S)` tokens; the samples that end are kept as they are then."""
        before = self._tokens.reshape(tokens.size, -1)
        # Every continuation is banned; a part is better than nothing.
        stuck = self._running & (scores == -np.inf)
        self._finish(stuck)
        going = self._running & ~stuck
        # A sample that has ended fills its row until its sentence leaves.
        tokens = np.where(going, tokens, self._eos_id)
        self._tokens = np.concatenate([self._tokens, tokens[:, :, None]], axis=2)
        self._scores = np.where(going, self._scores + scores, self._scores)
        self._log_probs = np.concatenate([self._log_probs, scores[:, :, None]], axis=2)
        self._running = going
        length = self._tokens.shape[2]
        rows = np.arange(tokens.size).reshape(tokens.shape)
        over = self._demands.over(before, rows, tokens, self._eos_id)
        cut = (length >= self._limits[self._sentences])[:, None]
        self._finish(going & (over | cut))

    def _finish(self, ended: npt.NDArray[np.bool_]) -> None:
        """Keeps the results of `(N, S)` samples, which run no longer."""
        length = self._tokens.shape[2]
        norm = length_norm(length - self._given, self._options)
        for n, sample in np.argwhere(ended):
            tokens = tuple(self._tokens[n, sample].tolist())
            score = float(self._scores[n, sample]) / norm
            log_probs = tuple(self._log_probs[n, sample].tolist())
            self._found[self._sentences[n]][sample] = Hypothesis(tokens, score, log_probs)
        self._running = self._running & ~ended

    def _leave(self) -> None:
        """Lets go of the sentences whose samples have all ended."""
        keep: npt.NDArray[np.bool_] = np.any(self._running, axis=1)
        if not keep.all():
            self._keep(keep)

    def _keep(self, stays: npt.NDArray[np.bool_]) -> None:
        keep = left(stays)
        self._sentences, self._tokens = self._sentences[keep], self._tokens[keep]
        self._scores, self._running = self._scores[keep], self._running[keep]
        self._log_probs = self._log_probs[keep]
        self._rows = self._rows.reshape(len(stays), -1)[keep]


class _Draws:
    """Random numbers of one sample, `[0, 1)`; the same on every machine and with every numpy."""

    def __init__(self, seed: int | None, sample: int, key: Sequence[int]) -> None:
        entropy = None if seed is None else [seed, sample, *key]
        self._bits = np.random.Philox(np.random.SeedSequence(entropy))

    def __call__(self) -> float:
        return int(self._bits.random_raw() >> 11) * 2.0**-53


def chances(scores: Float32Array, options: SearchOptions) -> npt.NDArray[np.float64]:
    """Returns the probability with which each of the best tokens is drawn.

    Args:
        scores: `(R, k)` log-probabilities of the best `top_k` tokens of each row, best first.
        options: temperature, `top_p` and `min_p`.

    Returns:
        `(R, k)` numbers, which sum to 1 in each row; the first is 1 where all tokens are banned.
    """
    best = np.where(scores[:, :1] > -np.inf, scores[:, :1], 0).astype(np.float64)
    shares: npt.NDArray[np.float64] = np.exp((scores - best) / options.temperature)
    shares[(shares == 0).all(axis=1), 0] = 1
    shares /= shares.sum(axis=1, keepdims=True)
    if options.top_p < 1:
        # As transformers' TopPLogitsWarper: what is no likelier than this token has to be more
        # than the rest of the probability; the best token always stays.
        tail = np.cumsum(shares[:, ::-1], axis=1)[:, ::-1]
        shares[:, 1:][tail[:, 1:] <= 1 - options.top_p] = 0
    shares[shares < options.min_p * shares[:, :1]] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _drawn(shares: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> Int64Array:
    """Returns the column of each row in which its number `[0, 1)` falls."""
    sums = np.cumsum(shares, axis=1)
    columns = (sums <= (draws * sums[:, -1])[:, None]).sum(axis=1)
    last = shares.shape[1] - 1 - np.argmax(shares[:, ::-1] > 0, axis=1)
    found: Int64Array = np.minimum(columns, last).astype(np.int64)
    return found
