"""Shared code of the search tests: ids, a driver, names of options, equality."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beam import BeamSearch, Hypothesis
from m2m100_onnx.search.ranking import rank
from m2m100_onnx.search.state import DecoderState, Float32Array, Int64Array, Ranked, Ranking

EOS, PAD = 2, 1


class Logits(Protocol):
    """A decoder whose step returns `(R, V)` logits."""

    def step(self, tokens: Int64Array) -> Float32Array: ...
    def select(self, rows: Int64Array) -> None: ...


class LogitsState:
    """Makes a `DecoderState` from a decoder that returns logits, and from the prompt's logits."""

    def __init__(self, decoder: Logits, logits: Float32Array) -> None:
        self.decoder, self.logits = decoder, logits
        self.vocab_size: int = logits.shape[-1]

    def best(self, ranking: Ranking) -> Ranked:
        return rank(self.logits, ranking)

    def step(self, tokens: Int64Array) -> None:
        self.logits = self.decoder.step(tokens)

    def select(self, rows: Int64Array) -> None:
        self.decoder.select(rows)
        self.logits = self.logits[rows]


def search(
    state: DecoderState, prompt: Int64Array, *, eos_id: int, options: SearchOptions
) -> list[list[Hypothesis]]:
    """Runs a search to its end, and returns the hypotheses of each sentence."""
    run = BeamSearch(state, prompt, eos_id=eos_id, options=options)
    while run.live:
        run.step()
    return [run.hypotheses(sentence) for sentence in range(len(prompt))]


def describe(value: Any) -> str:
    if not isinstance(value, SearchOptions):
        return f"B{value}"
    plain = asdict(SearchOptions())
    found = asdict(value)
    return ",".join(f"{key}={found[key]}" for key in plain if found[key] != plain[key])


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    # Relative too: negative length penalties give scores of -1000, where float32 has steps of 6e-5.
    np.testing.assert_allclose(
        [h.score for h in found], [h.score for h in expected], atol=1e-4, rtol=1e-6
    )
