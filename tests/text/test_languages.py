"""Suggestions for a language code that is not supported."""

from __future__ import annotations

import pytest

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.text.languages import suggest, unknown_language

CODES = FAMILIES["m2m100"].languages


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("EN", "en"),
        ("en-US", "en"),
        ("pt_BR", "pt"),
        ("zh-Hans", "zh"),
        (" de\n", "de"),
        ("__fr__", "fr"),
        ("jp", "ja"),
        ("UA", "uk"),
        ("cz", "cs"),
    ],
)
def test_a_code_with_one_meaning(code: str, meant: str) -> None:
    assert suggest(code, CODES) == (meant,)


def test_a_misspelled_code_has_up_to_three_near_ones() -> None:
    assert "en" in suggest("eng", CODES)
    assert len(suggest("zhh", CODES)) <= 3
    assert suggest("qqqq", CODES) == ()


def test_only_supported_codes_are_suggested() -> None:
    assert suggest("jp", ["de", "pt"]) == ("pt",)
    assert suggest("en-US", ["de"]) == ()


@pytest.mark.parametrize("code", [None, 3, b"en"])
def test_what_is_no_code_is_named(code: object) -> None:
    error = unknown_language(code, CODES)
    assert error.code == str(code)
    assert not error.untrained


def test_an_untrained_code_is_told_from_an_unknown_one() -> None:
    untrained = unknown_language("sv", ["en", "de"], CODES)
    assert untrained.untrained
    assert "not trained on it" in str(untrained)
    assert not unknown_language("tlh", ["en", "de"], CODES).untrained
    assert untrained.supported == ("en", "de")
