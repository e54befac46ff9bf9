"""The order of hypotheses by fluency, against the definition, and through the translator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import (
    Hypothesis,
    InputTooLongError,
    InvalidInputError,
    LanguageModel,
    Reranker,
    Score,
    Translation,
    Translator,
    UnknownLanguageError,
)

TEXTS = ["Open the file.", "Save a copy before you close the window.", "", "Delete the folder."]


class Lengths:
    """Finds short texts fluent; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], str]] = []

    def score(self, texts: Sequence[str], *, language: str) -> list[Score]:
        self.calls.append((list(texts), language))
        return [Score((1,), ("x",), (-float(len(text)),)) for text in texts]


def translation(*pairs: tuple[str, float]) -> Translation:
    hypotheses = tuple(Hypothesis(text, score, (2, n)) for n, (text, score) in enumerate(pairs))
    best = hypotheses[0]
    return Translation(best.text, best.score, best.tokens, hypotheses)


def test_score_and_fluency_are_weighed() -> None:
    model = Lengths()
    given = translation(("aaaa", -1.0), ("bb", -1.5), ("c", -9.0))
    same = translation(("dd", -2.0), ("ee", -2.0))
    (found, tied) = Reranker(model, 0.5).order([given, same], ["de", "de"])
    # -1 - 2, -1.5 - 1 and -9 - 0.5
    assert [h.text for h in found.hypotheses] == ["bb", "aaaa", "c"]
    assert (found.text, found.score, found.tokens) == ("bb", -1.5, (2, 1))
    assert tied == same
    assert Reranker(model, 0).order([given], ["de"]) == [given]


def test_one_call_a_language() -> None:
    model = Lengths()
    pair = translation(("aa", 0.0), ("b", 0.0))
    single = translation(("aa", 0.0))
    empty = Translation("", 0.0, (), ())
    languages = ["de", "fr", "de", "en"]
    found = Reranker(model, 1, {"fr": "fra"}).order([pair, pair, single, empty], languages)
    assert model.calls == [(["aa", "b"], "de"), (["aa", "b"], "fra")]
    assert [t.text for t in found] == ["b", "b", "aa", ""]


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", True])
def test_weights(weight: Any) -> None:
    with pytest.raises(InvalidInputError, match="weight: expected a number of 0 or more"):
        Reranker(Lengths(), weight)


def test_through_the_translator(translator: Translator, causal_xlm: tuple[Path, Path]) -> None:
    model = LanguageModel(causal_xlm[1])
    options: Any = {"source_lang": "en", "target_lang": "fr", "beam_size": 4}
    plain = translator.translate_batch(TEXTS, **options, num_hypotheses=4)
    expected = Reranker(model, 2.0).order(plain, ["fr"] * len(TEXTS))
    assert [t.text for t in expected] != [t.text for t in plain]
    rerank = Reranker(model, 2.0)
    assert translator.translate_batch(TEXTS, **options, rerank=rerank) == expected
    stream = translator.translate_iterable(iter(TEXTS), **options, read_ahead=2, rerank=rerank)
    assert list(stream) == expected
    texts = [t.text for t in expected]
    assert translator.translate(TEXTS, **options, rerank=rerank) == texts
    assert translator.translate(TEXTS, **options, rerank=rerank, num_hypotheses=1) == [
        t.text for t in plain
    ]
    default = Reranker(model).order(plain, ["fr"] * len(TEXTS))
    assert translator.translate_batch(TEXTS, **options, rerank=model) == default


def test_errors(translator: Translator, causal_xlm: tuple[Path, Path]) -> None:
    options: Any = {"source_lang": "en", "target_lang": "es", "beam_size": 2}
    with pytest.raises(UnknownLanguageError, match="'es'"):
        translator.translate_batch(TEXTS, **options, rerank=LanguageModel(causal_xlm[1]))
    with pytest.raises(InvalidInputError, match="rerank: expected a Reranker or a LanguageModel"):
        translator.translate_batch(TEXTS, **options, rerank=3)

    class Short(Lengths):
        def score(self, texts: Sequence[str], *, language: str) -> list[Score]:
            error = InputTooLongError(1, 2, f"{texts[-1]} in {language}")
            error.position = len(texts) - 1
            raise error

    with pytest.raises(InputTooLongError) as caught:
        translator.translate_batch(TEXTS[:3], **options, rerank=Short())
    # The longest source is translated first, so the last hypothesis is one of the first text.
    assert caught.value.position == 0
