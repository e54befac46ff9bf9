"""Terminology: translations contain the targets of the terms of their sources."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import InvalidInputError, Translator
from m2m100_onnx.text.term_files import read_terms
from translations import EN_DE, GRAPHS, need_kernels

TEXTS = ["Open the file.", "Quit", "The file could not be opened.", "Save a copy of the page."]
TERMS: dict[str, Any] = {"file": "Dokument", "page": ["Webseite", "Webseiten"]}


@pytest.fixture(scope="module")
def lines(repository: Path) -> list[str]:
    path = repository / "demo" / "heldout" / "test.en"
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


@pytest.fixture(scope="module")
def terms(repository: Path) -> dict[str, tuple[str, ...]]:
    return read_terms(repository / "tests" / "data" / "terms.en-de.tsv", "en", "de")


def occurrences(text: str, words: tuple[str, ...]) -> int:
    """How often one of some words is in a text, as a regular expression finds them."""
    forms = [form for word in words for form in (word, word[0].upper() + word[1:])]
    return len(re.findall(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", text))


def test_terms_are_there_once_for_each_occurrence(
    translator: Translator, lines: list[str], terms: dict[str, tuple[str, ...]]
) -> None:
    options: dict[str, Any] = {"beam_size": 5, "max_length": 120}
    chosen = [line for line in lines if len(line) < 160]
    found = translator.translate(chosen, **EN_DE, terms=terms, **options)
    plain = translator.translate(chosen, **EN_DE, **options)
    wanted, already = Counter[str](), 0
    for line, text, other in zip(chosen, found, plain, strict=True):
        is_bound = False
        for term, targets in terms.items():
            needed = occurrences(line, (term,))
            assert occurrences(text, targets) >= needed, (line, text)
            wanted[term] += needed
            already += min(needed, occurrences(other, targets))
            is_bound |= needed > 0
        if not is_bound:
            assert text == other
    # All of this glossary is tried, and much would not be there by itself.
    assert set(terms) == set(+wanted)
    assert already < 0.7 * wanted.total()


@pytest.mark.parametrize("graphs", GRAPHS.values(), ids=GRAPHS)
def test_a_text_has_its_terms_alone_and_in_a_batch(
    demo_bundle: Path, native_bundle: Path, graphs: dict[str, bool]
) -> None:
    if graphs.get("kernels"):
        need_kernels()
    translator = Translator(native_bundle if graphs.get("kernels") else demo_bundle, **graphs)
    options: dict[str, Any] = {"beam_size": 4, "num_hypotheses": 4, "repetition_penalty": 1.1}
    together = translator.translate_batch(TEXTS, **EN_DE, terms=TERMS, **options)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = translator.translate_batch([text], **EN_DE, terms=TERMS, **options)
        assert alone == found
    assert all("Dokument" in h.text for n in (0, 2) for h in together[n].hypotheses)
    assert all(re.search(r"\bWebseiten?\b", h.text) for h in together[3].hypotheses)
    (plain,) = translator.translate_batch(["Quit"], **EN_DE, **options)
    assert together[1] == plain


def test_scores_are_those_of_the_tokens(translator: Translator) -> None:
    (found,) = translator.translate_batch(TEXTS[2:3], **EN_DE, terms=TERMS)
    score = translator.score(TEXTS[2], found.text, **EN_DE)
    assert found.hypotheses[0].token_log_probs == pytest.approx(score.token_log_probs[1:], abs=1e-4)


def test_each_text_may_have_terms_of_its_own(translator: Translator) -> None:
    own = [{"file": "Dokument"}, None, {"file": "Archiv", "opened": "aufgemacht"}, {}]
    found = translator.translate(TEXTS, **EN_DE, terms=own)
    assert "Dokument" in found[0]
    assert "Archiv" in found[2]
    assert "aufgemacht" in found[2]
    assert found[1::2] == translator.translate(TEXTS[1::2], **EN_DE)
    streamed = translator.translate_iterable(iter(TEXTS), **EN_DE, terms=iter(own))
    assert [translation.text for translation in streamed] == found
    assert "".join(translator.stream(TEXTS[0], **EN_DE, terms=own[0])) == found[0]


def test_a_stream_has_one_text(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="terms: expected a mapping for a stream, found li"):
        translator.stream(TEXTS[0], **EN_DE, terms=[TERMS])


def test_prefixes_and_terms_go_together(translator: Translator) -> None:
    found = translator.translate(TEXTS[2], **EN_DE, terms=TERMS, target_prefix="Leider")
    assert found.startswith("Leider")
    assert "Dokument" in found
    # What the prefix has already is not asked for again.
    prefix = "Das Dokument konnte"
    found = translator.translate(TEXTS[2], **EN_DE, terms=TERMS, target_prefix=prefix)
    assert found == translator.translate(TEXTS[2], **EN_DE, target_prefix=prefix)


def test_scripts_without_blanks(translator: Translator) -> None:
    chinese: dict[str, Any] = {"source_lang": "en", "target_lang": "zh"}
    found = translator.translate(TEXTS[2], **chinese, terms={"file": "文档"})
    assert "文档" in found
    assert " " not in found
    back = translator.translate(
        "无法打开文件。", source_lang="zh", target_lang="en", terms={"文件": "archive"}
    )
    assert "archive" in back


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": TERMS, "beam_size": 1}, "terms: expected beam search with beam_size above 1"),
        ({"terms": TERMS, "do_sample": True}, "terms: expected beam search.*do_sample = True"),
        (
            {"terms": TERMS, "beam_size": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
            "terms: .*num_beam_groups = 2",
        ),
        ({"terms": "file=Datei"}, "terms: expected a mapping.*found str"),
        ({"terms": [TERMS, TERMS]}, "terms: expected a mapping.*each of 1 texts, found 2"),
        ({"terms": {"file": 5}}, "terms: expected a str, and as its target.*'file': 5"),
        ({"terms": {"file": []}}, r"terms: expected a str.*'file': \[\]"),
        ({"terms": {" ": "Datei"}}, "terms: expected words on both sides, found ' ': 'Datei'"),
        ({"terms": {"file": "🦄"}}, "terms: expected targets that the vocabulary can spell"),
        ({"terms": {"file": "Das Dokument im Archiv"}, "max_length": 5}, "terms: .*max_length"),
        ({"terms": [5]}, "terms: expected a mapping of str to str, found int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_terms(translator: Translator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        translator.translate(["Open the file."], **EN_DE, **options)


def test_banned_terms(translator: Translator) -> None:
    ids = translator.tokenizer.pieces_to_ids(translator.tokenizer.tokenize("Dokument"))
    with pytest.raises(InvalidInputError, match="without suppressed tokens, found 'Dokument'"):
        translator.translate("Open the file.", **EN_DE, terms=TERMS, suppress_tokens=ids)


def test_a_text_that_cannot_have_its_terms_fails_alone(translator: Translator) -> None:
    # A ban of the sequence keeps the term from every translation.
    ids = translator.tokenizer.pieces_to_ids(translator.tokenizer.tokenize("Archiv"))
    options: dict[str, Any] = {"terms": {"file": "Archiv"}, "max_length": 30}
    options["suppress_sequences"] = [ids]
    with pytest.raises(InvalidInputError, match="terms: expected a translation with all") as raised:
        translator.translate(["Quit", *TEXTS], **EN_DE, **options)
    assert raised.value.position in (1, 3)
    found = translator.translate_batch(TEXTS, **EN_DE, **options, on_error="return")
    assert isinstance(found[0], InvalidInputError)
    assert found[1] == translator.translate_batch(["Quit"], **EN_DE, max_length=30)[0]
    with pytest.raises(InvalidInputError, match="terms: expected a translation with all"):
        list(translator.stream(TEXTS[0], **EN_DE, **options))
