"""Suggestions for a language code that is not supported."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from m2m100_onnx import UnknownLanguageError
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.text.language_names import MEANINGS, NAMES
from m2m100_onnx.text.languages import suggest, unknown_language
from m2m100_onnx.text.tokenizer import Tokenizer

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
    assert suggest("en-US", ["de"]) == ()


@pytest.mark.parametrize("code", ["jp", "fil", "in", "fra_Latn", "Finnish", "pt"])
def test_what_is_understood_and_not_supported_has_no_near_ones(code: str) -> None:
    """Japanese is not like Portuguese, though `jp` is like `pt`."""
    assert suggest(code, ["de", "fi_", "fr_", "pi", "pt_"]) == ()


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


@pytest.fixture(params=["alone", "with langcodes"])
def langcodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The table alone, and a langcodes that gives another answer: the table comes first."""
    kind: str = request.param
    module = None
    if kind != "alone":
        module = SimpleNamespace(
            find=lambda name: SimpleNamespace(language=name[:2]),
            closest_supported_match=lambda tag, _: "zu" if tag in ("gsw", "de") else None,
        )
    monkeypatch.setitem(sys.modules, "langcodes", module)
    return kind


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("fil", ("tl",)),
        ("tgl_Latn", ("tl",)),
        ("in", ("id",)),
        ("iw", ("he",)),
        ("ji", ("yi",)),
        ("nn", ("no",)),
        ("nb-NO", ("no",)),
        ("sh", ("bs", "hr", "sr")),
        ("eng", ("en",)),
        ("eng_Latn", ("en",)),
        ("zho_Hans", ("zh",)),
        ("nso", ("ns",)),
        ("English", ("en",)),
        ("german", ("de",)),
        ("Deutsch", ("de",)),
        ("русский", ("ru",)),
        ("中文", ("zh",)),
        ("Englsh", ("en",)),
        ("Chinese (Traditional)", ("zh",)),
        ("simplified chinese", ("zh",)),
        ("Haitian Creole", ("ht",)),
        ("klingon", ()),
    ],
)
def test_names_and_codes_of_other_lists(langcodes: str, code: str, meant: tuple[str, ...]) -> None:
    assert langcodes
    assert suggest(code, CODES) == meant


def test_langcodes_knows_what_the_table_does_not(langcodes: str) -> None:
    expected = ("zu",) if langcodes == "with langcodes" else ("sw",)
    assert suggest("gsw", CODES) == expected
    assert suggest("deitsch", CODES) == (("zu",) if langcodes == "with langcodes" else ())


@pytest.mark.parametrize("error", [LookupError, ValueError, ImportError])
def test_langcodes_without_an_answer(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error

    module = SimpleNamespace(find=fail, closest_supported_match=fail)
    monkeypatch.setitem(sys.modules, "langcodes", module)
    assert suggest("Platt", CODES) == suggest("qqqq", CODES) == ()


def test_every_language_has_a_row() -> None:
    named = {code for codes in NAMES.values() for code in codes}
    assert named == set(CODES)
    assert set(MEANINGS).isdisjoint(CODES)
    assert {code for codes in MEANINGS.values() for code in codes} <= set(CODES)


def test_no_code_is_replaced_in_silence(tokenizer: Tokenizer) -> None:
    """The script of a tag would be lost, so the caller decides."""
    for code in ("zh-Hant", "EN", "English"):
        with pytest.raises(UnknownLanguageError, match="did you mean"):
            tokenizer.language_id(code)
