"""The LM head at work: the rank graph on the output of the last layer.

Knows the graph's inputs and onnxruntime's bindings; knows no cache. Shapes: R rows, D width, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.blocks import shared
from m2m100_onnx.model.sessions import run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.ranking import amend, among
from m2m100_onnx.search.state import Float32Array, Ranked, Ranking

__all__ = ["Head"]


class Head:
    """The rank graph; its inputs and outputs are bound again only when they change."""

    def __init__(
        self, session: ort.InferenceSession, vocab_size: int, hidden_states: ort.OrtValue
    ) -> None:
        """Binds the `(R, D)` array that the step graph writes and every `rank` reads."""
        self._session = session
        self._vocab_size = vocab_size
        self._binding = session.io_binding()
        self._rows: int = hidden_states.shape()[0]
        # A binding keeps no reference to what it binds.
        self._bound: dict[str, tuple[npt.NDArray[Any], ort.OrtValue]] = {}
        self.hidden_states = hidden_states
        self._binding.bind_ortvalue_input("hidden_states", self.hidden_states)

    def best(self, ranking: Ranking) -> Ranked:
        """Returns the best next tokens of each row, in buffers that the next call reuses.

        Raises:
            InvalidInputError: a score is NaN.
            InferenceError: onnxruntime failed.
        """
        if ranking.renormalized and (len(ranking.seen) or len(ranking.banned)):
            if len(ranking.seen) and len(ranking.banned):
                allowed = ~among(ranking.seen, ranking.banned)
                ranking = replace(ranking, seen=ranking.seen[allowed])
            ranked = self.rank(ranking)[0]
            if len(ranking.banned) >= self._vocab_size:
                # The softmax of a row in which all is banned is undefined.
                cells = np.unique(ranking.banned, axis=0)[:, 0]
                empty = np.bincount(cells, minlength=self._rows) >= self._vocab_size
                ranked.scores[empty] = -np.inf
            return _numbers(ranked)
        # A ban after the softmax needs only enough other tokens to take the banned ones' places.
        count = ranking.count + ranking.most_cells(self._rows)
        cells = ranking.seen
        if len(ranking.asked):
            cells = np.concatenate([cells, ranking.asked])
        ranked, scores = self.rank(replace(ranking, count=count, renormalized=False, seen=cells))
        return amend(_numbers(ranked), scores, ranking)

    def rank(self, ranking: Ranking) -> tuple[Ranked, Float32Array]:
        """Returns the graph's ranking, and the scores of the cells `ranking.seen`."""
        count = min(ranking.count, self._vocab_size)
        inputs = {
            "count": np.array([count]),
            "repetition_penalty": np.array(ranking.repetition_penalty, np.float32),
            "renormalized": np.array(ranking.renormalized),
            "seen": ranking.seen,
            "banned": ranking.banned,
        }
        outputs = {
            "scores": ((self._rows, count), np.float32),
            "tokens": ((self._rows, count), np.int64),
            "seen_scores": ((len(ranking.seen),), np.float32),
        }
        for name, array in inputs.items():
            if name not in self._bound or not np.array_equal(self._bound[name][0], array):
                self._bound[name] = array, shared(array)
                self._binding.bind_ortvalue_input(name, self._bound[name][1])
        for name, (shape, kind) in outputs.items():
            if name not in self._bound or self._bound[name][0].shape != shape:
                array = np.empty(shape, kind)
                self._bound[name] = array, shared(array)
                self._binding.bind_ortvalue_output(name, self._bound[name][1])
        run(self._session, self._binding)
        scores, tokens, seen_scores = (self._bound[name][0] for name in outputs)
        return Ranked(scores, tokens), seen_scores


def _numbers(ranked: Ranked) -> Ranked:
    """Returns the ranking; refuses a score that is NaN, which a comparison might hide."""
    if np.isnan(ranked.scores).any():
        raise InvalidInputError("logits: expected finite numbers, found NaN")
    return ranked
