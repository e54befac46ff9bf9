"""Runs whole texts through a language model: log-probabilities, vectors, and tokens for a mask.

Knows token ids and the model's outputs; knows no text. Shapes: B texts, S tokens, V vocabulary, D
width. What a text gives does not depend on the texts beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.engine.text_batches import Texts, cut_texts
from m2m100_onnx.model.causal import LanguageGraphs
from m2m100_onnx.options import CallOptions
from m2m100_onnx.search.state import Float32Array, Int64Array

__all__ = ["POOLINGS", "Reader", "taken"]

_POOLED: dict[str, Callable[[Float32Array], Float32Array]] = {
    "mean": lambda outputs: outputs.mean(axis=0),
    "first": lambda outputs: outputs[0].copy(),
    "last": lambda outputs: outputs[-1].copy(),
}
POOLINGS = tuple(_POOLED)
"""How the outputs at a text's tokens become one vector."""


class Reader:
    """Reads texts with a language model; many threads may use one at the same time."""

    def __init__(self, model: LanguageGraphs) -> None:
        """Takes the model; no graph is opened."""
        self._model = model
        self._config = model.bundle.config

    def log_probs(
        self, rows: Sequence[Sequence[int]], langs: Sequence[int], options: CallOptions, stop: Stop
    ) -> dict[int, Float32Array]:
        """Returns the log-probability of each token but the first, from those before it.

        Args:
            rows: the tokens of each text, control tokens included.
            langs: the language id of each text.
            options: has the budgets of a batch.
            stop: ends the work.

        Returns:
            By index of the text, what was read until `stop`.
        """
        found = {}
        with stop.ending_runs():
            for batch in self._batches(rows, langs, options, stop, self._config.vocab_size):
                logits = self._model.run(batch.input_ids, batch.attention_mask, batch.langs)
                for place, row in zip(batch.places.tolist(), logits, strict=True):
                    tokens = np.asarray(rows[place][1:], np.int64)
                    scores = row[: len(tokens)]
                    found[place] = taken(scores, tokens)
        return found

    def masked_log_probs(
        self, rows: Sequence[Sequence[int]], langs: Sequence[int], options: CallOptions, stop: Stop
    ) -> dict[int, Float32Array]:
        """Returns the log-probability of each token but the first and the last, from all others.

        Arguments and result are those of `log_probs`; each token takes a run of its text.
        """
        copies = [(n, at) for n, row in enumerate(rows) for at in range(1, len(row) - 1)]
        masked = [self._masked(rows[n], at) for n, at in copies]
        found = {n: np.zeros(len(row) - 2, np.float32) for n, row in enumerate(rows)}
        missing = {n: len(row) - 2 for n, row in enumerate(rows)}
        of_copies = [langs[n] for n, _ in copies]
        with stop.ending_runs():
            for batch in self._batches(masked, of_copies, options, stop, self._config.vocab_size):
                logits = self._model.run(batch.input_ids, batch.attention_mask, batch.langs)
                for place, scores in zip(batch.places.tolist(), logits, strict=True):
                    n, at = copies[place]
                    token = np.asarray([rows[n][at]], np.int64)
                    found[n][at - 1] = taken(scores[at : at + 1], token)[0]
                    missing[n] -= 1
        return {n: values for n, values in found.items() if not missing[n]}

    def vectors(
        self,
        rows: Sequence[Sequence[int]],
        langs: Sequence[int],
        pooling: str,
        options: CallOptions,
        stop: Stop,
    ) -> dict[int, Float32Array]:
        """Returns a vector `(D,)` for each text, from the last layer's outputs at its tokens.

        Args:
            rows: the tokens of each text, control tokens included.
            langs: the language id of each text.
            pooling: `mean` of all tokens, or the `first`, or the `last`.
            options: has the budgets of a batch.
            stop: ends the work.
        """
        found = {}
        with stop.ending_runs():
            for batch in self._batches(rows, langs, options, stop, self._config.d_model):
                outputs = self._model.run(
                    batch.input_ids, batch.attention_mask, batch.langs, "last_hidden_state"
                )
                for place, row in zip(batch.places.tolist(), outputs, strict=True):
                    found[place] = _POOLED[pooling](row[: len(rows[place])])
        return found

    def candidates(
        self, row: Sequence[int], lang: int, positions: Sequence[int], count: int
    ) -> list[tuple[Int64Array, Float32Array]]:
        """Returns the likeliest tokens at some positions of a text, and their probabilities.

        Args:
            row: the text's tokens.
            lang: its language id.
            positions: the positions, which are masked in `row`.
            count: the tokens of each position, likeliest first.
        """
        options = CallOptions()
        (batch,) = cut_texts([row], [lang], self._config.pad_token_id, options, 1)
        logits = self._model.run(batch.input_ids, batch.attention_mask, batch.langs)[0]
        found = []
        for position in positions:
            scores = logits[position].astype(np.float64)
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            best = np.argsort(-probabilities, kind="stable")[:count]
            found.append((best, probabilities[best].astype(np.float32)))
        return found

    def _masked(self, row: Sequence[int], at: int) -> list[int]:
        return [*row[:at], self._config.mask_index, *row[at + 1 :]]

    def _batches(
        self,
        rows: Sequence[Sequence[int]],
        langs: Sequence[int],
        options: CallOptions,
        stop: Stop,
        width: int,
    ) -> Iterator[Texts]:
        pad = self._config.pad_token_id
        # Numbers of the output and of what is computed from it.
        return stop.during(cut_texts(rows, langs, pad, options, 2 * 4 * width))


def entropies(logits: Float32Array) -> Float32Array:
    """Returns the entropy of each row of `(S, V)` logits, in nats: `-sum(p * log(p))`."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1)
    shifted *= weights
    found: Float32Array = np.log(total) - shifted.sum(axis=-1) / total
    return found


def taken(logits: Float32Array, tokens: Int64Array) -> Float32Array:
    """Returns the log-probability of a token in each row of `(S, V)` logits; changes the logits."""
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    total = np.exp(logits, out=logits).sum(axis=-1)
    found: Float32Array = chosen - np.log(total)
    return found
