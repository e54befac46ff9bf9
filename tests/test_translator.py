"""Text in, text out: order, batches, streams, languages, options and threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import (
    InputTooLongError,
    InvalidInputError,
    Translation,
    Translator,
    UnknownLanguageError,
)
from translations import EN_DE, GREEDY, LIMIT, assert_same, long_text

# --- What comes back -----------------------------------------------------------------------------


def test_a_text_gives_a_text(translator: Translator) -> None:
    found = translator.translate("Open the file.", **EN_DE)
    assert isinstance(found, str)
    assert "Datei" in found


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_texts_give_a_list(translator: Translator, kind: type) -> None:
    found = translator.translate(kind(["Quit", "Open the file."]), **EN_DE)
    assert isinstance(found, list)
    assert found == [translator.translate(text, **EN_DE) for text in ("Quit", "Open the file.")]
    assert translator.translate(["Quit"], **EN_DE) == found[:1]
    assert translator.translate([], **EN_DE) == []
    assert translator.translate_batch([], **EN_DE) == []


def test_order_is_kept(translator: Translator, sentences: list[str]) -> None:
    texts = sorted(sentences[:12], key=len)
    texts = [text for pair in zip(texts[:6], reversed(texts[6:]), strict=True) for text in pair]
    found = translator.translate(texts, **GREEDY, max_batch_tokens=100)
    assert found == [translator.translate(text, **GREEDY) for text in texts]
    assert len(set(found)) == len(found)


def test_translation_is_its_best_hypothesis(translator: Translator, sentences: list[str]) -> None:
    found = translator.translate_batch(sentences[:6], **EN_DE, beam_size=4, num_hypotheses=4)
    for translation in found:
        best = translation.hypotheses[0]
        assert (translation.text, translation.score, translation.tokens) == (
            best.text,
            best.score,
            best.tokens,
        )
        scores = [hypothesis.score for hypothesis in translation.hypotheses]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert len({hypothesis.tokens for hypothesis in translation.hypotheses}) == 4
        for hypothesis in translation.hypotheses:
            assert hypothesis.tokens[:2] == (2, translator.tokenizer.language_id("de"))
            assert hypothesis.tokens[-1] == 2
            assert hypothesis.text == translator.tokenizer.decode(hypothesis.tokens)
            assert 1 not in hypothesis.tokens
    one = translator.translate_batch(sentences[:6], **EN_DE, beam_size=4)
    assert_same(one, [Translation(t.text, t.score, t.tokens, t.hypotheses[:1]) for t in found])


@pytest.mark.parametrize("text", ["", " ", "   ", "\t\n ", "\u3000"])
def test_nothing_to_translate(
    translator: Translator, starts: list[tuple[int, int]], text: str
) -> None:
    assert translator.translate(text, **EN_DE) == ""
    assert translator.translate([text, text], **EN_DE) == ["", ""]
    assert translator.translate_batch([text], **EN_DE) == [Translation("", 0.0, (), ())]
    assert starts == []
    found = translator.translate(["Quit", text, "Open the file."], **EN_DE)
    assert found == [translator.translate("Quit", **EN_DE), "", found[2]]
    assert found[2] == translator.translate("Open the file.", **EN_DE)
    assert starts[0][0] == 2


def test_nothing_to_translate_still_needs_a_language(translator: Translator) -> None:
    for languages in ({"source_lang": "xx", "target_lang": "de"}, {**EN_DE, "target_lang": "xx"}):
        with pytest.raises(UnknownLanguageError):
            translator.translate("", **languages)


# --- Languages -----------------------------------------------------------------------------------


def test_a_language_for_each_text(translator: Translator) -> None:
    texts = ["Open the file.", "Die Datei wurde nicht gefunden.", "El archivo ya existe.", "Quit"]
    sources, targets = ["en", "de", "es", "en"], ["fr", "en", "ru", "zh"]
    found = translator.translate_batch(texts, source_lang=sources, target_lang=targets)
    expected = [
        translator.translate_batch([text], source_lang=source, target_lang=target)[0]
        for text, source, target in zip(texts, sources, targets, strict=True)
    ]
    assert_same(found, expected)
    for translation, target in zip(found, targets, strict=True):
        assert translation.tokens[1] == translator.tokenizer.language_id(target)
    # One of the two may be shared by all.
    mixed = translator.translate(texts[:1] * 2, source_lang="en", target_lang=("fr", "zh"))
    assert mixed[0] == found[0].text
    assert mixed[1] != mixed[0]
    mixed = translator.translate(texts[1:3], source_lang=["de", "es"], target_lang="en")
    assert mixed[0] == found[1].text


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_languages_as_texts(translator: Translator, name: str, count: int) -> None:
    languages: dict[str, Any] = {**EN_DE, name: ["en"] * count}
    with pytest.raises(InvalidInputError, match=rf"{name}: .*each of 2 texts, found {count}"):
        translator.translate(["Quit", "Open"], **languages)


@pytest.mark.parametrize(
    "given", [{"en", "de"}, {"en": 1, "de": 2}], ids=lambda languages: type(languages).__name__
)
def test_languages_have_an_order(translator: Translator, given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(InvalidInputError, match=rf"source_lang: .*2 texts, found {kind}"):
        translator.translate(["Quit", "Open"], **{**EN_DE, "source_lang": given})


def test_an_array_of_no_dimensions_is_one_text(translator: Translator) -> None:
    texts = np.array(["Quit", "Open"])
    assert translator.translate(texts, **EN_DE) == translator.translate(list(texts), **EN_DE)
    with pytest.raises(InvalidInputError, match="expected several str, found one ndarray"):
        translator.translate_batch(np.array("Quit"), **EN_DE)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", ["no", 1, 0])
def test_fused_is_a_bool(tiny_bundle: Path, fused: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"fused: .*found {fused!r}"):
        Translator(tiny_bundle, fused=fused)


def test_one_text_takes_one_language(translator: Translator) -> None:
    wrong: dict[str, Any] = {**EN_DE, "target_lang": ["de", "fr"]}
    with pytest.raises(InvalidInputError, match=r"target_lang: .*each of 1 texts, found 2"):
        translator.translate("Quit", **wrong)


@pytest.mark.parametrize(
    ("code", "matches", "message"),
    [
        ("EN", ("en",), "unknown language 'EN'; did you mean 'en'?"),
        ("en-US", ("en",), "did you mean 'en'?"),
        ("zh_Hans", ("zh",), "did you mean 'zh'?"),
        ("__fr__", ("fr",), "did you mean 'fr'?"),
        ("qqq", (), "unknown language 'qqq' (supported: en, de, fr, es, ru, zh)"),
        ("pt", (), "language 'pt' has a token, but this checkpoint was not trained on it"),
        ("", (), "unknown language ''"),
    ],
)
@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
def test_unknown_language(
    translator: Translator, name: str, code: str, matches: tuple[str, ...], message: str
) -> None:
    for call in (
        lambda: translator.translate("Quit", **{**EN_DE, name: code}),
        lambda: translator.translate(["Quit", "Open"], **{**EN_DE, name: ["en", code]}),
    ):
        with pytest.raises(UnknownLanguageError) as caught:
            call()
        assert caught.value.code == code
        assert caught.value.matches == matches
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "match"), [("jp", "ja"), ("JP", "ja"), ("deu", "de"), ("eng", "en"), ("pt-BR", "pt")]
)
def test_near_matches_among_all_languages(tiny_bundle: Path, code: str, match: str) -> None:
    translator = Translator(tiny_bundle, lazy=True)
    assert len(translator.languages) == 100
    with pytest.raises(UnknownLanguageError, match="did you mean") as caught:
        translator.translate("Quit", source_lang="en", target_lang=code)
    assert match in caught.value.matches
    assert "100 codes" in str(caught.value)


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("value", [None, 5, b"en"])
def test_language_of_another_kind(translator: Translator, name: str, value: Any) -> None:
    for text in ("Quit", ["Quit", "Open"]):
        with pytest.raises((InvalidInputError, UnknownLanguageError), match=r"lang"):
            translator.translate(text, **{**EN_DE, name: value})


def test_languages_are_those_the_checkpoint_was_trained_on(translator: Translator) -> None:
    assert translator.languages == ("en", "de", "fr", "es", "ru", "zh")


# --- Texts that cannot be translated -------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 5, b"Quit", ["Quit"], float("nan")])
def test_what_is_no_text_is_named(translator: Translator, value: Any) -> None:
    name = type(value).__name__
    with pytest.raises(InvalidInputError, match=rf"texts\[2\]: expected a str, found {name}"):
        translator.translate(["Quit", "Open", value], **EN_DE)


@pytest.mark.parametrize("value", ["Quit", b"Quit"])
def test_one_string_is_no_list_of_strings(translator: Translator, value: Any) -> None:
    for call in (translator.translate_batch, translator.translate_iterable):
        with pytest.raises(InvalidInputError, match=rf"found one {type(value).__name__}"):
            call(value, **EN_DE)


@pytest.mark.parametrize("value", [None, 5, b"Quit"])
def test_neither_text_nor_list(translator: Translator, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"text.* found .*{type(value).__name__}"):
        translator.translate(value, **EN_DE)


def test_longest_text_is_translated(translator: Translator) -> None:
    text = long_text(translator, LIMIT)
    found = translator.translate_batch([text], **GREEDY, max_length=8)
    assert len(found[0].tokens) >= 3


def test_longer_text_is_refused(translator: Translator, starts: list[tuple[int, int]]) -> None:
    text = long_text(translator, LIMIT + 1)
    with pytest.raises(InputTooLongError, match=r"257 tokens.*at most 256.*file copy") as caught:
        translator.translate(["Quit", text], **GREEDY)
    assert (caught.value.limit, caught.value.length) == (LIMIT, LIMIT + 1)
    assert len(str(caught.value)) < 300
    # Nothing is translated before everything was checked.
    assert starts == []


def test_truncate_translates_the_beginning(
    translator: Translator, demo_checkpoint: Path, starts: list[tuple[int, int]]
) -> None:
    text = long_text(translator, LIMIT + 40)
    ids = translator.tokenizer.encode(text, "en")
    (found,) = translator.translate_batch(
        [text], **EN_DE, beam_size=2, max_length=12, truncate=True
    )
    assert starts == [(1, LIMIT)]
    model = M2M100ForConditionalGeneration.from_pretrained(
        demo_checkpoint, dtype=torch.float32
    ).eval()
    # The language token in front and the end of the sentence stay.
    cut = torch.tensor([[*ids[: LIMIT - 1], 2]])
    expected = model.generate(
        cut,
        attention_mask=torch.ones_like(cut),
        forced_bos_token_id=translator.tokenizer.language_id("de"),
        num_beams=2,
        max_length=12,
        early_stopping=True,
    )
    assert list(found.tokens) == expected[0].tolist()


def test_encode_is_what_the_model_is_given(translator: Translator) -> None:
    ids = translator.encode("Open the file.", "en")
    assert ids == translator.tokenizer.encode("Open the file.", "en")
    assert translator.encode("Open the file.", "en", truncate=True) == ids
    fitting, longer = long_text(translator, LIMIT), long_text(translator, LIMIT + 3)
    assert len(translator.encode(fitting, "en")) == LIMIT
    with pytest.raises(InputTooLongError, match=r"259 tokens"):
        translator.encode(longer, "en")
    cut = translator.encode(longer, "en", truncate=True)
    assert len(cut) == LIMIT
    assert cut[:-1] == translator.tokenizer.encode(longer, "en")[: LIMIT - 1]
    assert cut[-1] == translator.tokenizer.eos_id


def test_truncate_leaves_shorter_texts_alone(translator: Translator, sentences: list[str]) -> None:
    texts = sentences[:4]
    assert_same(
        translator.translate_batch(texts, **GREEDY, truncate=True),
        translator.translate_batch(texts, **GREEDY),
    )
