"""The hypotheses that a beam search has finished, and whether better ones may come.

Knows scores; knows no rows and no model.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beams import Beams, Candidates
from m2m100_onnx.search.hypothesis import Hypothesis, length_norm
from m2m100_onnx.search.state import Float32Array, Int64Array

__all__ = ["Finished"]


class Finished:
    """The best hypotheses of each search, `options.wanted` at most, best first."""

    def __init__(self, sentences: int, options: SearchOptions, given: int) -> None:
        """Starts with none.

        Args:
            sentences: B; each has as many searches as there are groups of beams.
            options: what to search for.
            given: tokens of the prompt that are not in the length of a sequence.
        """
        self._options, self._given = options, given
        self._found: list[list[Hypothesis]] = [
            [] for _ in range(sentences * options.num_beam_groups)
        ]

    def of(self, sentence: int) -> list[Hypothesis]:
        """Returns those of a sentence, all its groups together, best first."""
        groups = self._options.num_beam_groups
        found = self._found[sentence * groups : (sentence + 1) * groups]
        if groups == 1:
            return found[0]
        return sorted((h for each in found for h in each), key=lambda hypothesis: -hypothesis.score)

    def clear(self, sentence: int) -> None:
        """Forgets those of a sentence."""
        groups = self._options.num_beam_groups
        for search in range(sentence * groups, (sentence + 1) * groups):
            self._found[search] = []

    def collect(
        self, beams: Beams, candidates: Candidates, finishing: npt.NDArray[np.bool_]
    ) -> None:
        """Adds candidates, and keeps the best of each search.

        Args:
            beams: the sequences that they grow from.
            candidates: `(N, C)` of them.
            finishing: `(N, C')` which of the first C' to add.
        """
        sequences = beams.sequences
        norm = length_norm(beams.length + 1 - self._given, self._options)
        scores = candidates.scores / norm
        finishing = finishing & (candidates.scores[:, : finishing.shape[1]] > -np.inf)
        for n, column in np.argwhere(finishing):
            row = candidates.rows[n, column]
            tokens = (*sequences[row].tolist(), int(candidates.tokens[n, column]))
            log_probs = beams.log_probs(row, float(candidates.scores[n, column]))
            found = Hypothesis(tokens, float(scores[n, column]), log_probs)
            self._found[beams.searches[n]].append(found)
        for search in beams.searches:
            # The older wins a tie.
            self._found[search].sort(key=lambda hypothesis: -hypothesis.score)
            del self._found[search][self._options.wanted :]

    def add_part(self, beams: Beams, place: int) -> None:
        """Adds the best sequence of a search as it is, for want of a better one."""
        score = beams.scores[place, 0] / length_norm(beams.length - self._given, self._options)
        part = tuple(beams.tokens[place, 0].tolist())
        log_probs = beams.log_probs(place * beams.scores.shape[1])
        self._found[beams.searches[place]].append(Hypothesis(part, float(score), log_probs))

    def going(
        self, searches: Int64Array, running: Float32Array, length: int, limits: Int64Array
    ) -> npt.NDArray[np.bool_]:
        """Says which searches are worth another step, as `_check_early_stop_heuristic` does.

        Args:
            searches: `(N,)` numbers.
            running: `(N,)` the best sum of log-probabilities of their beams; -inf if none is left.
            length: tokens of a beam.
            limits: `(N,)` the most tokens of each.
        """
        return np.array(
            [
                self._can_improve(self._found[search], best, length, limit)
                for search, best, limit in zip(searches, running, limits, strict=True)
            ],
            bool,
        )

    def _can_improve(
        self, hypotheses: list[Hypothesis], best_running: float, length: int, limit: int
    ) -> bool:
        options = self._options
        full = len(hypotheses) == options.wanted
        # Greedy search is beam search with one beam that stops at the first hypothesis.
        if full and (options.early_stopping is True or options.beam_size == 1):
            return False
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = limit
        worst_finished = hypotheses[-1].score if full else -math.inf
        return bool(best_running / length_norm(length - self._given, options) > worst_finished)
