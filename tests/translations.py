"""Shared code of the translator's tests: common arguments, and equality of translations."""

from __future__ import annotations

from typing import Any

import pytest

import golden
from m2m100_onnx import Translation, Translator

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
GREEDY: dict[str, Any] = {**EN_DE, "beam_size": 1}
GRAPHS: dict[str, dict[str, bool]] = {
    "native": {"kernels": True},
    "fused": {"fused": True, "kernels": False},
    "portable": {"fused": False},
}
"""The sets of graphs, and the arguments that choose them."""
LIMIT = 256
"""Number of positions of the demo model."""


def need_kernels() -> None:
    """Skips a test, or a file of tests, where the operators are not installed."""
    reason = "m2m100-onnx-kernels is not installed"
    pytest.importorskip("m2m100_onnx_kernels", reason=reason, exc_type=ImportError)


def assert_same(found: list[Translation], expected: list[Translation]) -> None:
    """Asserts equal tokens and texts in every hypothesis, and scores within rounding."""
    for a, b in zip(found, expected, strict=True):
        assert [(h.tokens, h.text) for h in a.hypotheses] == [
            (h.tokens, h.text) for h in b.hypotheses
        ]
        scores = [h.score for h in b.hypotheses]
        assert [h.score for h in a.hypotheses] == pytest.approx(scores, abs=1e-5)


def assert_independent(translator: Translator) -> None:
    """Asserts that a text has the same result, to the last bit of its score, alone and in a batch.

    The batches include a text of hundreds of tokens, and have different widths. Where activations
    are rounded, the last bit of a sum can decide for another word.
    """
    outlier = "Ж" * 60 + " 漢字 🎉 " + "!?" * 40
    asked: dict[str, Any] = {"max_length": 40, "max_batch_tokens": 100_000}
    for direction, beam_size in (("en-fr", 1), ("zh-en", 3)):
        texts = golden.Case(direction, 1, {}, every=10).texts()[:25]
        asked["source_lang"], asked["target_lang"] = direction.split("-")
        alone = [translator.translate_batch([t], beam_size=beam_size, **asked)[0] for t in texts]
        for together in ([*texts, outlier], texts):
            found = translator.translate_batch(together, beam_size=beam_size, **asked)
            assert found[: len(texts)] == alone


def long_text(translator: Translator, tokens: int) -> str:
    """Returns a text of exactly `tokens` tokens, including the language token and `</s>`."""
    words = ["file", "copy", "save", "close", "window", "open", "name", "user", "error", "disk"]
    text = ""
    while (count := len(translator.tokenizer.encode(text, "en"))) < tokens:
        text = (text + " " + words[count % len(words)]).strip()
    assert count == tokens
    return text
