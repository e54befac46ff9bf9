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
* Groups of beams (`num_beam_groups`) are those of transformers up to 4.55 (`_group_beam_search`):
  each is a search of its own but for the penalty, and what `max_length` cuts is added to what has
  ended, where other searches let it end in its place among the candidates.

There is one difference, where transformers returns noise. With fewer continuations than beams, it
adds copies with score -1e9, or token 0. This search drops those beams: a sentence may return fewer
hypotheses than asked for, and its best unfinished sequence if nothing can end.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beams import Beams, Candidates, best_candidates
from m2m100_onnx.search.constraints import next_ranking
from m2m100_onnx.search.demands import NO_DEMANDS, Demands
from m2m100_onnx.search.diverse import diverse_candidates
from m2m100_onnx.search.finished import Finished
from m2m100_onnx.search.hypothesis import Hypothesis, check_arguments, require, shared_prefix
from m2m100_onnx.search.state import (
    DecoderState,
    Float32Array,
    Int64Array,
    Ranked,
    Ranking,
    follow,
    left,
    rows_of,
)
from m2m100_onnx.search.terms import asked_cells, constrained_candidates

__all__ = ["BeamSearch", "Hypothesis"]


class BeamSearch:
    """A search that its caller drives, step by step, until no sentence is live.

        search = BeamSearch(state, prompt, eos_id=2, options=options)
        while search.live:
            search.step()

    Between two steps the caller may stop, `drop` a sentence, take the `hypotheses` of one that has
    ended, or read the `settled` prefix of a live one. A sentence's result does not depend on the
    sentences beside it, nor on what the caller does between steps.

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
        given: int = 1,
        demands: Demands = NO_DEMANDS,
    ) -> None:
        """Starts with one row per sentence; no step is made.

        Args:
            state: the decoder, which has been fed `prompt`, one row per sentence.
            prompt: `(B, P)` start token and language token of each sentence.
            eos_id: the token that ends a sequence.
            options: what to search for.
            given: tokens of the prompt that are not in the length of a sequence.
            demands: what the sentences ask for beside that.

        Raises:
            InvalidInputError: shapes or ids do not fit together.
        """
        check_arguments(state.vocab_size, prompt, eos_id, options)
        self.state, self._eos_id, self._options = state, eos_id, options
        self._demands, self._groups = demands, options.num_beam_groups
        count = len(prompt)
        self._limits = demands.most(np.arange(count), options.max_length)
        searches: Int64Array = np.arange(count * self._groups)
        scores = np.zeros((len(searches), 1), np.float32)
        sums = np.empty((len(searches), 1, 0), np.float32)
        prompts = np.repeat(prompt[:, None], self._groups, axis=0)
        self._beams = Beams(searches, prompts, scores, sums)
        self._finished = Finished(count, options, given)
        # The state follows the beams at the start of the next step. So the state is not stepped
        # after the last token, and a dropped sentence costs no `select` of its own.
        self._fed = True
        self._rows = searches // self._groups  # of the state, that the beams grow from
        self._state_rows = count

    @property
    def live(self) -> tuple[int, ...]:
        """The sentences that still grow, in order, as indices into the prompt."""
        return tuple(sorted(self._sentences[:: self._groups].tolist()))

    @property
    def _sentences(self) -> Int64Array:
        """`(N,)` the sentence of each search."""
        return self._beams.searches // self._groups

    def step(self) -> tuple[int, ...]:
        """Appends one token to every live sentence; returns the sentences that ended with it.

        Raises:
            InvalidInputError: the state's scores are NaN or +inf.
        """
        if not self.live:
            return ()
        return self.answer(self.state.best(self.ask()))

    def ask(self) -> Ranking:
        """Lets the state follow the beams; returns what the search wants of it.

        With `answer` it is the two halves of a step, between which several searches may share a run
        of the model.
        """
        tokens = None if self._fed else self._beams.tokens
        follow(self.state, self._state_rows, self._rows, tokens)
        demands, beams = self._demands, self._beams
        self._terms = [demands.terms[n] for n in self._sentences] if demands.terms else []
        self._ranking = next_ranking(beams.sequences, self._eos_id, self._options)
        if self._terms:
            self._ranking = replace(self._ranking, asked=asked_cells(beams, self._terms))
        return self._ranking

    def answer(self, ranked: Ranked) -> tuple[int, ...]:
        """Makes the step that `ask` has begun; result and errors are those of `step`."""
        before, live, options = self._beams, self.live, self._options
        candidates = self._candidates(ranked)
        over = self._demands.over(
            before.sequences, candidates.rows, candidates.tokens, self._eos_id
        )
        cut = (before.length + 1 >= self._limits[self._sentences])[:, None]
        k = options.group_size
        if self._groups == 1:
            # The second K replace beams that end; transformers lets none of them finish.
            self._finished.collect(before, candidates, (over | cut)[:, :k])
        else:
            self._finished.collect(before, candidates, over[:, :k])
            going = self._going(candidates.scores)[:, None]
            first = np.cumsum(~over, axis=1) <= k
            self._finished.collect(before, candidates, ~over & cut & going & first)
        self._advance(candidates, over | cut)
        self._state_rows, self._fed = before.scores.size, False
        # Not `np.setdiff1d`, which takes as long as the rest of a step.
        return tuple(sorted(set(live).difference(self.live)))

    def drop(self, sentence: int) -> None:
        """Ends a live sentence without a result; the other sentences go on as before.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        beams = self._beams
        keep = self._sentences != sentence
        require(not keep.all(), "sentence", f"one of the live {self.live}", sentence)
        self._finished.clear(sentence)
        self._rows = self._rows.reshape(beams.scores.shape)[keep].reshape(-1)
        self._beams = beams.kept(keep)

    def hypotheses(self, sentence: int) -> list[Hypothesis]:
        """Returns at most `num_hypotheses` results of a sentence, best first.

        Those of a sentence that has ended are final. Those of a live one are what has finished so
        far. A dropped one has none, nor has one whose terms no sequence contains.

        Raises:
            InvalidInputError: there is no such sentence.
        """
        last = len(self._limits) - 1
        require(0 <= sentence <= last, "sentence", f"0 to {last}", sentence)
        return self._finished.of(sentence)[: self._options.num_hypotheses]

    def settled(self, sentence: int) -> tuple[int, ...]:
        """Returns the prefix that every result of a live sentence will start with.

        It is what all live beams share with each other and with the hypotheses that have finished,
        any of which may win; the prompt included.

        Raises:
            InvalidInputError: the sentence is not live.
        """
        own = self._beams.kept(self._sentences == sentence)
        require(len(own.searches) > 0, "sentence", f"one of the live {self.live}", sentence)
        tokens = own.tokens[own.scores > -np.inf]
        finished = [hypothesis.tokens for hypothesis in self._finished.of(sentence)]
        return shared_prefix([*map(tuple, tokens.tolist()), *finished])

    def _candidates(self, ranked: Ranked) -> Candidates:
        """Returns the best continuations of the beams, as options and demands ask for them."""
        beams, options, terms = self._beams, self._options, self._terms
        require(len(ranked.tokens) == beams.scores.size, "rows", "prompt's", len(ranked.tokens))
        if self._groups > 1:
            return diverse_candidates(ranked, beams, options, self._eos_id)
        if not terms:
            return best_candidates(ranked, beams, 2 * options.beam_size)
        return constrained_candidates(
            ranked, self._ranking.asked, beams, terms, self._cannot_go_on, 2 * options.beam_size
        )

    def _cannot_go_on(self, rows: Int64Array, tokens: Int64Array) -> npt.NDArray[np.bool_]:
        """Says which rows end with a token, or with their length."""
        beams = self._beams
        cut = beams.length + 1 >= self._limits[self._sentences]
        over = self._demands.over(beams.sequences, rows, tokens, self._eos_id)
        over |= cut[rows // beams.scores.shape[1]]
        return over

    def _going(self, scores: Float32Array) -> npt.NDArray[np.bool_]:
        """Says which searches are worth a step beyond the next, given scores `(N, C)` of it."""
        beams, limits = self._beams, self._limits[self._sentences]
        return self._finished.going(beams.searches, scores.max(axis=1), beams.length + 1, limits)

    def _advance(self, candidates: Candidates, ended: npt.NDArray[np.bool_]) -> None:
        """Grows the live sentences by the best candidates that have not ended."""
        beams = self._beams
        order = np.argsort(ended, axis=1, kind="stable")[:, : self._options.group_size]
        scores = np.take_along_axis(candidates.scores, order, axis=1)
        scores[np.take_along_axis(ended, order, axis=1)] = -np.inf
        # A group that is done waits for the others of its sentence, since rows are alike for all.
        going = self._going(scores if self._groups == 1 else candidates.scores)
        going &= scores.max(axis=1) > -np.inf
        scores[~going] = -np.inf
        stays: npt.NDArray[np.bool_] = np.any(going.reshape(-1, self._groups), axis=1)
        for place in (np.flatnonzero(~stays) * self._groups).tolist():
            sentence = int(beams.searches[place]) // self._groups
            # Every continuation is banned; a part is better than nothing, but for missing terms.
            if not self._finished.of(sentence) and not self._demands.wants_terms(sentence):
                self._finished.add_part(beams, place)
        keep = rows_of(left(stays), self._groups)
        rows = np.take_along_axis(candidates.rows, order, axis=1)[keep]
        tokens = np.take_along_axis(candidates.tokens, order, axis=1)[keep]
        grown = np.concatenate([beams.sequences[rows], tokens[:, :, None]], axis=2)
        past = beams.sums[divmod(rows, beams.scores.shape[1])]
        sums = np.concatenate([past, scores[keep][:, :, None]], axis=2)
        self._rows = rows.reshape(-1)
        self._beams = Beams(beams.searches[keep], grown, scores[keep], sums)
