"""Log-probabilities of tokens, and alternatives at a position, against transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import Cancellation, Cancelled, Hypothesis, InvalidInputError, Translator
from m2m100_onnx.translation import EMPTY

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
TEXTS = ["Open the file.", "The package could not be installed.", "Save"]
WAYS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"beam_size": 4, "num_hypotheses": 4},
    {"beam_size": 3, "num_hypotheses": 3, "repetition_penalty": 1.3, "length_penalty": 0.0},
    {"beam_size": 2, "max_length": 5},
)
NAMES = {"beam_size": "num_beams", "num_hypotheses": "num_return_sequences"}


@pytest.fixture(scope="module")
def translator(demo_bundle: Path) -> Translator:
    return Translator(demo_bundle)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_log_probabilities_are_those_of_transformers(
    translator: Translator, torch_model: M2M100ForConditionalGeneration, options: dict[str, Any]
) -> None:
    for text, found in zip(
        TEXTS, translator.translate_batch(TEXTS, **EN_DE, **options), strict=True
    ):
        out = torch_model.generate(
            torch.tensor([translator.encode(text, "en")]),
            forced_bos_token_id=translator.tokenizer.language_id("de"),
            return_dict_in_generate=True,
            output_scores=True,
            **{NAMES.get(name, name): value for name, value in options.items()},
        )
        greedy = options["beam_size"] == 1
        each = torch_model.compute_transition_scores(
            out.sequences,
            out.scores,
            None if greedy else out.beam_indices,
            normalize_logits=greedy,
        )
        for hypothesis, tokens, scores in zip(found.hypotheses, out.sequences, each, strict=True):
            assert list(hypothesis.tokens) == [t for t in tokens.tolist() if t != 1]
            count = len(hypothesis.tokens) - 2
            wanted = scores[1 : 1 + count].tolist()  # The language token is forced.
            np.testing.assert_allclose(hypothesis.token_log_probs, wanted, atol=1e-3)
            length = (len(hypothesis.tokens) - 1) ** options.get("length_penalty", 1.0)
            assert hypothesis.score == pytest.approx(
                sum(hypothesis.token_log_probs) / length, abs=1e-5
            )


def test_mean_and_minimum() -> None:
    found = Hypothesis("a", -1.0, (2, 3, 4, 2), (-0.5, -1.5))
    assert (found.mean_log_prob, found.min_log_prob) == (-1.0, -1.5)
    assert EMPTY.hypotheses == ()
    nothing = Hypothesis("", 0.0, ())
    assert math.isnan(nothing.mean_log_prob)
    assert math.isnan(nothing.min_log_prob)


def test_prefixes_have_no_log_probabilities(translator: Translator) -> None:
    (found,) = translator.translate_batch(TEXTS[:1], **EN_DE, target_prefix="Bitte")
    given = 2 + len(translator.tokenizer.tokenize("Bitte"))
    assert len(found.hypotheses[0].token_log_probs) == len(found.tokens) - given


@pytest.mark.parametrize("prefix", [None, "Das Paket"])
def test_alternatives_are_the_likeliest_tokens(
    translator: Translator, torch_model: M2M100ForConditionalGeneration, prefix: str | None
) -> None:
    text = TEXTS[1]
    found = translator.alternatives(text, **EN_DE, prefix=prefix, count=4, beam_size=2)
    ids = [2, *translator.encode(prefix or "", "de")[:-1]]
    with torch.inference_mode():
        logits = torch_model(
            input_ids=torch.tensor([translator.encode(text, "en")]),
            decoder_input_ids=torch.tensor([ids]),
        ).logits[0, -1]
    wanted = torch.softmax(logits, -1).topk(20)
    words = [
        (token, chance)
        for token, chance in zip(wanted.indices.tolist(), wanted.values.tolist(), strict=True)
        if token not in translator.tokenizer.control_ids
    ][:4]
    assert [a.token for a in found] == [token for token, _ in words]
    assert [a.probability for a in found] == pytest.approx([p for _, p in words], abs=1e-4)
    for alternative in found:
        tokens = alternative.translation.tokens
        assert list(tokens[: len(ids) + 1]) == [*ids, alternative.token]
        (alone,) = translator.translate_batch(
            [text], **EN_DE, beam_size=2, target_prefix=[[*ids[2:], alternative.token]]
        )
        assert alone.tokens == tokens
    least = found[1].probability - 1e-6
    some = translator.alternatives(text, **EN_DE, prefix=prefix, min_probability=least, beam_size=2)
    assert [a.token for a in some] == [a.token for a in found[:2]]


def test_bad_alternatives(translator: Translator) -> None:
    for options, message in (
        ({"count": 0}, "count: expected an int from 1"),
        ({"min_probability": 2.0}, "min_probability: expected a number from 0 to 1"),
        ({"prefix": ""}, "expected a token or more"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            translator.alternatives(TEXTS[0], **EN_DE, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="do_sample: expected False for alternatives"):
        translator.alternatives(TEXTS[0], **EN_DE, do_sample=True)
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        translator.alternatives(TEXTS[0], **EN_DE, cancellation=cancellation)
