"""Shared code of the translator's tests: common arguments, and equality of translations."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden
from m2m100_onnx import Translation, Translator
from m2m100_onnx.search.state import Ranking

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


def need_compiler() -> None:
    """Skips a test where the C++ compiler that scripts/kernels would take is not installed."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: there is no C++ compiler")


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


def beside_exact(
    checkpoint: Path, translators: Mapping[str, Translator], *, every: int, prompt_tokens: int
) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Returns log probabilities of the best next tokens, and how far they are off transformers'.

    Args:
        checkpoint: what transformers computes with.
        translators: by name.
        every: of the texts, one in so many.
        prompt_tokens: tokens of a text that are fed as its translation.

    Returns:
        Two arrays `(texts, 50)` for each translator.
    """
    import torch
    from transformers import M2M100ForConditionalGeneration

    reference = M2M100ForConditionalGeneration.from_pretrained(checkpoint).eval()
    tokenizer = next(iter(translators.values())).tokenizer
    found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in translators}
    for text in golden.Case("en-de", 1, {}, every=every).texts():
        ids = np.array([tokenizer.encode(text, "en")])
        given = tokenizer.encode(text, "de")[1 : 1 + prompt_tokens]
        prompt = np.array([[2, tokenizer.language_id("de"), *given]])
        with torch.inference_mode():
            out = reference(
                input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor(prompt)
            ).logits[0, -1]
        exact = torch.log_softmax(out, -1).numpy()
        for name, translator in translators.items():
            best = translator.model.begin(ids, np.ones_like(ids), prompt).best(Ranking(count=50))
            found[name].append((best.scores[0].copy(), best.scores[0] - exact[best.tokens[0]]))
    return {
        name: (np.stack([scores for scores, _ in rows]), np.stack([off for _, off in rows]))
        for name, rows in found.items()
    }


def root_mean_square(values: npt.NDArray[np.float32]) -> float:
    """Returns the root of the mean of squares."""
    return float(np.sqrt(np.square(values).mean()))


def long_text(translator: Translator, tokens: int) -> str:
    """Returns a text of exactly `tokens` tokens, including the language token and `</s>`."""
    words = ["file", "copy", "save", "close", "window", "open", "name", "user", "error", "disk"]
    text = ""
    while (count := len(translator.tokenizer.encode(text, "en"))) < tokens:
        text = (text + " " + words[count % len(words)]).strip()
    assert count == tokens
    return text
