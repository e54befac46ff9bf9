"""Tests that translations equal those of transformers' `generate`, token for token."""

from __future__ import annotations

import random
from typing import Any

import pytest

import golden
from m2m100_onnx import Translator

SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return golden.load_golden()


def translate(translator: Translator, case: golden.Case, texts: list[str]) -> list[Any]:
    """Translates in batches of the case's size, in file order, so that lengths are mixed."""
    source, target = case.direction.split("-")
    found = []
    for start in range(0, len(texts), case.batch_size):
        found += translator.translate_batch(
            texts[start : start + case.batch_size],
            source_lang=source,
            target_lang=target,
            # Large enough that no batch is split.
            max_batch_tokens=1 << 20,
            **{"length_penalty": 1.0, **case.options},
        )
    return found


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    """Asserts equal tokens in every hypothesis, and scores within the tolerance."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert [list(h.tokens) for h in ours.hypotheses] == [tokens for tokens, _ in theirs]
        scores = [score for _, score in theirs]
        assert [h.score for h in ours.hypotheses] == pytest.approx(scores, abs=SCORE_TOLERANCE)


def name(case: golden.Case) -> str:
    options = ",".join(f"{k}={v}" for k, v in case.options.items())
    return f"{case.direction},batch={case.batch_size},{options}"


@pytest.mark.parametrize("case", golden.whole_cases(), ids=name)
def test_whole_set(translator: Translator, expected: dict[str, Any], case: golden.Case) -> None:
    assert_equal(translate(translator, case, case.texts()), expected[case.key])


@pytest.mark.parametrize("case", golden.matrix_cases(), ids=name)
def test_option_matrix(translator: Translator, expected: dict[str, Any], case: golden.Case) -> None:
    assert_equal(translate(translator, case, case.texts()), expected[case.key])


@pytest.fixture(scope="module")
def reference() -> golden.Reference:
    return golden.Reference()


@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize("direction", golden.DIRECTIONS)
def test_live(
    translator: Translator, reference: golden.Reference, direction: str, beam_size: int
) -> None:
    """Compares with a reference made in this run, on dev sentences that no golden file has."""
    options = {"beam_size": beam_size, "early_stopping": beam_size > 1}
    case = golden.Case(direction, 8, options)
    texts = random.Random(direction).sample(case.texts("dev"), 16)
    wanted = reference.translate(texts, direction, options)
    assert_equal(translate(translator, case, texts), wanted)


def test_many_target_languages_in_one_batch(
    translator: Translator, reference: golden.Reference
) -> None:
    targets = ["de", "fr", "es", "ru", "zh"]
    texts = golden.Case("en-de", 1, {}).texts()[:20]
    found = translator.translate_batch(
        texts, source_lang="en", target_lang=[targets[i % 5] for i in range(20)], beam_size=4
    )
    options = {"beam_size": 4, "early_stopping": True}
    for offset, target in enumerate(targets):
        wanted = reference.translate(texts[offset::5], f"en-{target}", options)
        assert_equal(found[offset::5], wanted)
