"""What the tests of the translator share: usual arguments, and what is the same translation."""

from __future__ import annotations

from typing import Any

import pytest

from m2m100_onnx import Translation, Translator

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
GREEDY: dict[str, Any] = {**EN_DE, "beam_size": 1}
LIMIT = 256
"""Positions of the demo model."""


def assert_same(found: list[Translation], expected: list[Translation]) -> None:
    """Same tokens and texts in every hypothesis, scores within rounding."""
    for a, b in zip(found, expected, strict=True):
        assert [(h.tokens, h.text) for h in a.hypotheses] == [
            (h.tokens, h.text) for h in b.hypotheses
        ]
        scores = [h.score for h in b.hypotheses]
        assert [h.score for h in a.hypotheses] == pytest.approx(scores, abs=1e-5)


def long_text(translator: Translator, tokens: int) -> str:
    """A text of exactly so many tokens, language token and `</s>` included."""
    words = ["file", "copy", "save", "close", "window", "open", "name", "user", "error", "disk"]
    text = ""
    while (count := len(translator.tokenizer.encode(text, "en"))) < tokens:
        text = (text + " " + words[count % len(words)]).strip()
    assert count == tokens
    return text
