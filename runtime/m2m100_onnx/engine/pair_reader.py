"""Runs sources and whole targets through a translation model: log-probabilities and states.

Knows token ids and the model's outputs; knows no text. Shapes: B pairs, S source tokens, T target
tokens, V vocabulary, D width. What a pair gives does not depend on the pairs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from m2m100_onnx.engine.reader import entropies, taken
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.engine.text_batches import Pairs, cut_pairs
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import CallOptions
from m2m100_onnx.search.state import Float32Array, Int64Array

__all__ = ["PairReader"]


class PairReader:
    """Reads pairs with a translation model; many threads may use one at the same time."""

    def __init__(self, model: Model) -> None:
        """Takes the model; no graph is opened."""
        self._model = model
        self._config = model.bundle.config

    def log_probs(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        options: CallOptions,
        stop: Stop,
        *,
        with_entropies: bool = False,
    ) -> dict[int, Float32Array]:
        """Returns the log-probability of each target token but the first, `(1, T - 1)`.

        Args:
            sources: the tokens of each source, as the encoder reads them.
            targets: the tokens of each target, from the decoder's start token to the last.
            options: has the budgets of a batch.
            stop: ends the work.
            with_entropies: whether there is a second row, of the entropies of the distributions.

        Returns:
            By index of the pair, what was read until `stop`.
        """
        found: dict[int, Float32Array] = {}
        fed = [target[:-1] for target in targets]
        config, native = self._config, self._model.native
        # Keys and values; or logits, and what is computed from them.
        numbers = 2 * config.decoder_layers * config.d_model
        if not native or with_entropies:
            numbers = (4 if with_entropies else 2) * config.vocab_size
        with stop.ending_runs():
            for batch in self._batches(sources, fed, options, stop, numbers):
                places = batch.places.tolist()
                following = [np.asarray(targets[place][1:], np.int64) for place in places]
                rows: list[list[Float32Array]] = [[] for _ in places]
                if not native or with_entropies:
                    rows = self._rows_of_logits(batch, following, with_entropies)
                if native:
                    log_probs = self._native_log_probs(batch, following)
                    rows = [[own, *more[1:]] for own, more in zip(log_probs, rows, strict=True)]
                found.update(
                    (place, np.stack(row)) for place, row in zip(places, rows, strict=True)
                )
        return found

    def _rows_of_logits(
        self, batch: Pairs, following: Sequence[Int64Array], with_entropies: bool
    ) -> list[list[Float32Array]]:
        """Returns the log-probabilities of each pair, and entropies if they are wanted."""
        logits = self._model.target_logits(batch.input_ids, batch.attention_mask, batch.target)
        rows = []
        for whole, tokens in zip(logits, following, strict=True):
            own = whole[: len(tokens)]
            more = [entropies(own)] if with_entropies else []
            rows.append([taken(own, tokens), *more])
        return rows

    def _native_log_probs(
        self, batch: Pairs, following: Sequence[Int64Array]
    ) -> list[Float32Array]:
        """Returns those of the native graphs, which are the same on every processor."""
        wanted = np.full(batch.target.shape, -1, np.int64)
        for row, tokens in zip(wanted, following, strict=True):
            row[: len(tokens)] = tokens
        found = self._model.target_log_probs(
            batch.input_ids, batch.attention_mask, batch.target, wanted
        )
        return [row[: len(tokens)] for row, tokens in zip(found, following, strict=True)]

    def attention(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        layers: Sequence[int],
        options: CallOptions,
        stop: Stop,
    ) -> dict[int, Float32Array]:
        """Returns the attention of target tokens to source tokens, `(L', H, T, S)`.

        Args:
            sources: the tokens of each source, as the encoder reads them.
            targets: the tokens that the decoder is fed.
            layers: L' layers of the decoder.
            options: has the budgets of a batch.
            stop: ends the work.

        Returns:
            By index of the pair, what was read until `stop`.
        """
        found = {}
        longest = max(map(len, sources), default=0)
        # The outputs and a copy of them, and what a layer computes them from.
        numbers = 2 * (len(layers) + 1) * self._config.decoder_attention_heads * longest
        with stop.ending_runs():
            for batch in self._batches(sources, targets, options, stop, numbers):
                inputs = batch.input_ids, batch.attention_mask, batch.target
                weights = self._model.cross_attention(*inputs, layers)
                for place, row in zip(batch.places.tolist(), weights, strict=True):
                    found[place] = row[..., : len(targets[place]), : len(sources[place])].copy()
        return found

    def states(
        self, sources: Sequence[Sequence[int]], options: CallOptions, stop: Stop
    ) -> dict[int, Float32Array]:
        """Returns the encoder's output `(S, D)` at each token of each source."""
        found = {}
        nothing: list[list[int]] = [[]] * len(sources)
        with stop.ending_runs():
            for batch in self._batches(sources, nothing, options, stop, 0):
                outputs = self._model.encode(batch.input_ids, batch.attention_mask)
                for place, row in zip(batch.places.tolist(), outputs, strict=True):
                    # A view would keep the whole batch.
                    found[place] = row[: len(sources[place])].copy()
        return found

    def _batches(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        options: CallOptions,
        stop: Stop,
        numbers: int,
    ) -> Iterator[Pairs]:
        """Yields batches until `stop`; `numbers` is the float32 of a target's position."""
        pad, width = self._config.pad_token_id, self._config.d_model
        sizes = 2 * 4 * width, 4 * (numbers + width)
        return stop.during(cut_pairs(sources, targets, pad, options, sizes))
