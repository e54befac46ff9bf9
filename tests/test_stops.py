"""What ends a translation: texts and tokens against transformers, and lengths of sources."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer
from transformers.generation.stopping_criteria import StopStringCriteria

from m2m100_onnx import InvalidInputError, LanguageModel, Translator
from m2m100_onnx.text.stops import Stops
from m2m100_onnx.text.tokenizer import Tokenizer
from translations import EN_DE, GRAPHS, need_kernels

TEXTS = [
    "Open the file.",
    "The package could not be installed.",
    "You do not have permission to open this file.",
    "Save a copy, or quit.",
    "Quit",
]
WAYS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 4, "num_hypotheses": 4},
    {"beam_size": 3, "early_stopping": False, "length_penalty": 2.0, "num_hypotheses": 2},
)
NAMES = {"beam_size": "num_beams", "num_hypotheses": "num_return_sequences"}
STOPS = [["ei"], [" nicht", "."], ["Datei zu", "ie "], ["nie und nimmer"]]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_texts_end_a_translation_where_transformers_ends_it(
    translator: Translator,
    torch_model: M2M100ForConditionalGeneration,
    reference: M2M100Tokenizer,
    options: dict[str, Any],
    stops: list[str],
) -> None:
    together = translator.translate_batch(TEXTS, **EN_DE, stop_sequences=stops, **options)
    ended = 0
    for text, found in zip(TEXTS, together, strict=True):
        ids = torch.tensor([translator.encode(text, "en")])
        out = torch_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            forced_bos_token_id=translator.tokenizer.language_id("de"),
            stop_strings=stops,
            tokenizer=reference,
            **{NAMES.get(name, name): value for name, value in options.items()},
        )
        wanted = [[t for t in row.tolist() if t != 1] for row in out]
        assert [list(h.tokens) for h in found.hypotheses] == wanted
        ended += found.tokens[-1] != 2
    assert (ended > 0) == (stops != STOPS[-1])


@pytest.mark.parametrize("stop", ["ei", " n", "Sie d", ".", "auf", "x", "ordn", " die Da"])
def test_a_text_ends_where_transformers_says(
    tokenizer: Tokenizer, reference: M2M100Tokenizer, repository: Path, stop: str
) -> None:
    lines = (repository / "demo" / "heldout" / "test.de").read_text(encoding="utf-8").split("\n")
    ids = tokenizer.pieces_to_ids(tokenizer.tokenize(" ".join(lines[:60])))
    sequences = np.lib.stride_tricks.sliding_window_view(np.array(ids), 6)
    criteria = StopStringCriteria(reference, [stop])
    expected = criteria(torch.tensor(sequences), None).numpy()
    found = Stops([stop], tokenizer)(sequences)
    np.testing.assert_array_equal(found, expected)
    assert found.any()


@pytest.mark.parametrize("graphs", GRAPHS.values(), ids=GRAPHS)
def test_token_ids_end_a_translation(
    demo_bundle: Path, native_bundle: Path, graphs: dict[str, bool]
) -> None:
    if graphs.get("kernels"):
        need_kernels()
    folder = native_bundle if graphs.get("kernels") else demo_bundle
    translator = Translator(folder, **graphs)
    for beams in (1, 4):
        options = {"beam_size": beams, "early_stopping": False}
        (whole,) = translator.translate_batch(TEXTS[1:2], **EN_DE, **options)
        two = whole.tokens[3:5]
        (found,) = translator.translate_batch(TEXTS[1:2], **EN_DE, **options, stop_sequences=[two])
        assert found.tokens[-2:] == two
        if beams == 1:
            assert found.tokens == whole.tokens[:5]
    pieces = list(translator.stream(TEXTS[1], **EN_DE, beam_size=1, stop_sequences=[two]))
    assert "".join(pieces) == translator.translate(
        TEXTS[1], **EN_DE, beam_size=1, stop_sequences=[two]
    )


def test_samples_end_too(translator: Translator) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 3, "num_hypotheses": 6}
    (free,) = translator.translate_batch(TEXTS[2:3], **EN_DE, **options)
    (found,) = translator.translate_batch(
        TEXTS[2:3], **EN_DE, **options, stop_sequences=["ie"], max_length_ratio=0.8
    )
    limit = 3 + math.ceil(0.8 * (len(translator.encode(TEXTS[2], "en")) - 2))
    for a, b in zip(free.hypotheses, found.hypotheses, strict=True):
        assert b.tokens == a.tokens[: len(b.tokens)]
        assert "ie" in b.text or b.tokens[-1] == 2 or len(b.tokens) == limit
        assert "ie" not in translator.tokenizer.decode(b.tokens[:-1])


@pytest.mark.parametrize("ratio", [0.3, 0.75, 1.0, 3.0])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_ratio_is_a_max_length_for_each_text(
    translator: Translator, ratio: float, beams: int
) -> None:
    options: dict[str, Any] = {"beam_size": beams, "num_hypotheses": beams}
    options["early_stopping"] = beams == 1 or "never"
    found = translator.translate_batch(TEXTS, **EN_DE, max_length_ratio=ratio, **options)
    for text, translation in zip(TEXTS, found, strict=True):
        pieces = len(translator.encode(text, "en")) - 2
        limit = 3 + math.ceil(ratio * pieces)
        (alone,) = translator.translate_batch([text], **EN_DE, max_length=limit, **options)
        assert [h.tokens for h in translation.hypotheses] == [h.tokens for h in alone.hypotheses]
        assert all(len(h.tokens) <= limit for h in translation.hypotheses)


def test_words_that_must_not_occur(translator: Translator) -> None:
    plain = translator.translate(TEXTS[0], **EN_DE)
    assert "Datei" in plain
    without = translator.translate(TEXTS[0], **EN_DE, suppress_sequences=["Datei"])
    assert "Datei" not in re.findall(r"\w+", without)
    ids = translator.tokenizer.pieces_to_ids(translator.tokenizer.tokenize("Datei"))
    assert translator.translate(TEXTS[0], **EN_DE, suppress_sequences=[ids]) == without


def test_a_prefix_must_leave_room(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match=r"fewer than max_length_ratio = \d+ tokens"):
        translator.translate(
            "Quit", **EN_DE, max_length_ratio=0.1, target_prefix="Öffnen Sie die Datei"
        )


def test_a_language_model_takes_ids(causal_xlm: tuple[Path, Path]) -> None:
    model = LanguageModel(causal_xlm[1])
    options: dict[str, Any] = {"beam_size": 1, "max_new_tokens": 8}
    (free,) = model.generate_batch(["abc"], language="en", **options)
    stop = free.tokens[-4:-2]
    (found,) = model.generate_batch(["abc"], language="en", **options, stop_sequences=[stop])
    first = next(
        end for end in range(2, len(free.tokens) + 1) if free.tokens[end - 2 : end] == stop
    )
    assert found.tokens[:first] == free.tokens[: len(found.tokens)]
    wrong: tuple[dict[str, Any], ...] = (
        {"stop_sequences": ["."]},
        {"suppress_sequences": ["x"]},
        {"max_length_ratio": 2.0},
    )
    for each in wrong:
        with pytest.raises(InvalidInputError, match=next(iter(each))):
            model.generate(["abc"], language="en", **options, **each)
