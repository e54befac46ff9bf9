"""Translations that begin with a prefix, against transformers' `decoder_input_ids`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import InvalidInputError, Translator

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
TEXTS = [
    "Open the file.",
    "The package could not be installed.",
    "You do not have permission to open this file.",
    "Save a copy.",
]
# The last one is fed in one run where the graphs allow it.
PREFIXES = ["Bitte öffnen Sie", "Das", None, "Eine Kopie der Datei wurde nicht gespeichert, weil"]
WAYS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 4, "num_hypotheses": 4},
    {"beam_size": 3, "early_stopping": False, "length_penalty": 2.0, "num_hypotheses": 2},
    {"beam_size": 2, "min_length": 20, "no_repeat_ngram_size": 3, "max_length": 30},
    {"beam_size": 1, "max_new_tokens": 5},
    {"beam_size": 3, "max_new_tokens": 3, "num_hypotheses": 3},
    {"beam_size": 2, "min_new_tokens": 12, "max_new_tokens": 16},
)
NAMES = {"beam_size": "num_beams", "num_hypotheses": "num_return_sequences"}


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "portable"])
def translator(demo_bundle: Path, request: pytest.FixtureRequest) -> Translator:
    return Translator(demo_bundle, fused=request.param)


def tokens_of(translator: Translator, prefix: str | None) -> list[int]:
    """What transformers' tokenizer makes of a target, without the end."""
    return translator.encode(prefix or "", "de")[1:-1]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_tokens_and_scores_are_those_of_transformers(
    translator: Translator, torch_model: M2M100ForConditionalGeneration, options: dict[str, Any]
) -> None:
    together = translator.translate_batch(TEXTS, **EN_DE, target_prefix=PREFIXES, **options)
    for text, prefix, found in zip(TEXTS, PREFIXES, together, strict=True):
        ids = torch.tensor([translator.encode(text, "en")])
        language = translator.tokenizer.language_id("de")
        start = [2, language, *tokens_of(translator, prefix)]
        fed = {} if prefix is None else {"decoder_input_ids": torch.tensor([start])}
        out = torch_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            forced_bos_token_id=language,
            return_dict_in_generate=True,
            output_scores=True,
            **fed,
            **{NAMES.get(name, name): value for name, value in options.items()},
        )
        wanted = [[t for t in row.tolist() if t != 1] for row in out.sequences]
        assert [list(h.tokens) for h in found.hypotheses] == wanted
        assert list(found.tokens[: len(start)]) == start
        if options["beam_size"] > 1:
            scores = [h.score for h in found.hypotheses]
            np.testing.assert_allclose(scores, out.sequences_scores, atol=1e-4)
        (alone,) = translator.translate_batch([text], **EN_DE, target_prefix=[prefix], **options)
        assert alone.tokens == found.tokens
        assert alone.score == pytest.approx(found.score, abs=1e-5)


def test_text_and_tokens_are_alike(translator: Translator) -> None:
    as_text = translator.translate(TEXTS[0], **EN_DE, target_prefix=PREFIXES[0])
    ids = tokens_of(translator, PREFIXES[0])
    assert translator.translate(TEXTS[0], **EN_DE, target_prefix=ids) == as_text
    assert as_text.startswith("Bitte öffnen Sie")
    every = translator.translate(TEXTS, **EN_DE, target_prefix="Bitte")
    assert all(text.startswith("Bitte") for text in every)
    streamed = translator.translate_iterable(
        iter(TEXTS), **EN_DE, target_prefix=iter(PREFIXES), read_ahead=2
    )
    wanted = translator.translate(TEXTS, **EN_DE, target_prefix=PREFIXES)
    assert [t.text for t in streamed] == wanted


def test_one_new_token(translator: Translator) -> None:
    options: dict[str, Any] = {**EN_DE, "max_new_tokens": 1, "target_prefix": ["Bitte"]}
    (found,) = translator.translate_batch(TEXTS[:1], **options)
    assert len(found.tokens) == 2 + len(tokens_of(translator, "Bitte")) + 1
    message = "max_new_tokens: expected room for a token behind the language token.*found 2 in all"
    with pytest.raises(InvalidInputError, match=message):
        translator.translate(TEXTS[:2], **{**options, "target_prefix": ["Bitte", None]})


def test_half_a_word_is_continued(translator: Translator) -> None:
    found = translator.translate(TEXTS[0], **EN_DE, target_prefix="Öff")
    assert found.startswith("Öffne")


def test_streams_begin_with_it(translator: Translator) -> None:
    options: dict[str, Any] = {**EN_DE, "target_prefix": "Bitte", "beam_size": 2}
    pieces = list(translator.stream(TEXTS[0], **options))
    assert "".join(pieces) == translator.translate(TEXTS[0], **options)


@pytest.mark.parametrize("beams", [1, 4])
def test_quantized_bundles(packed_bundle: Path, graphs: dict[str, bool], beams: int) -> None:
    """A batch of prefixes of many lengths is its sentences, to the last bit."""
    translator = Translator(packed_bundle, **graphs)
    options: dict[str, Any] = {**EN_DE, "beam_size": beams, "max_length": 40}
    together = translator.translate_batch(TEXTS, target_prefix=PREFIXES, **options)
    for text, prefix, found in zip(TEXTS, PREFIXES, together, strict=True):
        (alone,) = translator.translate_batch([text], target_prefix=[prefix], **options)
        assert alone == found


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("", "expected a token or more, found ''"),
        ([], r"expected a token or more, found \[\]"),
        ([2], "expected words of a text, found </s>"),
        ([700, 0], "expected words of a text, found <s>"),
        ([10**6], "expected"),
        ("\u2603", "expected words of a text, found <unk>"),
        (5, "expected text or tokens, found int"),
        ("wort " * 300, "expected fewer than max_length = 200 tokens"),
    ],
    ids=repr,
)
def test_bad_prefixes(translator: Translator, prefix: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        translator.translate(TEXTS[0], **EN_DE, target_prefix=prefix)
    with pytest.raises(InvalidInputError, match=message) as caught:
        translator.translate(TEXTS[:2], **EN_DE, target_prefix=["Das", prefix])
    assert caught.value.position == 1


def test_as_many_prefixes_as_texts(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="for each of 4 texts, found 2"):
        translator.translate(TEXTS, **EN_DE, target_prefix=["Das", "Die"])
    with pytest.raises(InvalidInputError, match=r"target_prefix: .*found set"):
        translator.translate(TEXTS, **EN_DE, target_prefix={"Das"})
