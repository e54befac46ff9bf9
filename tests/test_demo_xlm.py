"""The demo XLM, which is trained: its numbers mean something. Export, perplexity and fluency."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import XLMTokenizer

import xlm
from m2m100_onnx import LanguageModel, Score
from m2m100_onnx_export import export
from tokenization import DEMO

CHECKPOINT = DEMO / "xlm"
LANGUAGES = ("de", "en")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("demo-xlm")
    return {p: export(CHECKPOINT, folder / p, precision=p).bundle for p in ("fp32", "int8", "int4")}


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> LanguageModel:
    return LanguageModel(bundles["fp32"])


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Held-out sentences, the same in each language."""
    return {
        code: (DEMO / "heldout" / f"test.{code}").read_text("utf-8").split("\n")[:200]
        for code in LANGUAGES
    }


def perplexity(scores: list[Score]) -> float:
    total = sum(score.sum for score in scores)
    count = sum(len(score.token_log_probs) for score in scores)
    return float(torch.exp(torch.tensor(-total / count)))


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_right_language_is_likelier(
    model: LanguageModel, texts: dict[str, list[str]], code: str
) -> None:
    (other,) = set(LANGUAGES) - {code}
    right = model.score(texts[code], language=code)
    wrong = model.score(texts[code], language=other)
    assert 1.5 * perplexity(right) < perplexity(wrong)
    likelier = sum(r.sum > w.sum for r, w in zip(right, wrong, strict=True))
    assert likelier > 0.9 * len(right)


@pytest.mark.parametrize("code", LANGUAGES)
def test_real_sentences_are_likelier_than_shuffled_ones(
    model: LanguageModel, texts: dict[str, list[str]], code: str
) -> None:
    mixer = random.Random(0)
    shuffled = [" ".join(mixer.sample(words := text.split(), len(words))) for text in texts[code]]
    real = model.score(texts[code], language=code)
    assert 1.5 * perplexity(real) < perplexity(model.score(shuffled, language=code))


def test_perplexity_is_that_of_torch(model: LanguageModel, texts: dict[str, list[str]]) -> None:
    reference = xlm.load(CHECKPOINT).float()
    tokenizer = XLMTokenizer.from_pretrained(CHECKPOINT)
    total, count = 0.0, 0
    for text in texts["de"][:40]:
        pieces = tokenizer.convert_tokens_to_ids(tokenizer._tokenize(text, lang="de"))
        ids = torch.tensor([tokenizer.build_inputs_with_special_tokens(pieces)])
        langs = torch.full_like(ids, tokenizer.lang2id["de"])
        with torch.inference_mode():
            logs = reference(ids, langs=langs).logits[0, :-1].log_softmax(-1)
        total += float(logs.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    wanted = float(torch.exp(torch.tensor(-total / count)))
    assert perplexity(model.score(texts["de"][:40], language="de")) == pytest.approx(
        wanted, rel=1e-4
    )


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "portable"])
def test_generation_token_for_token(bundles: dict[str, Path], beam_size: int, fused: bool) -> None:
    reference = xlm.load(CHECKPOINT).float()
    opened = LanguageModel(bundles["fp32"], fused=fused)
    for code, prompt in (("en", "Open the file"), ("de", "Die Datei"), ("en", "")):
        found = opened.generate_batch(
            [prompt], language=code, beam_size=beam_size, max_new_tokens=20
        )[0]
        row = opened.tokenizer.encode(prompt, code)[:-1]
        lang = opened.tokenizer.language_id(code)
        tokens, score = xlm.generate(reference, row, lang, beam_size=beam_size, max_new_tokens=20)
        assert list(found.tokens) == tokens
        assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("precision", "most"), [("int8", 1.02), ("int4", 1.2)])
def test_fewer_bits_cost_little(
    bundles: dict[str, Path],
    model: LanguageModel,
    texts: dict[str, list[str]],
    precision: str,
    most: float,
) -> None:
    exact = perplexity(model.score(texts["de"], language="de"))
    rounded = perplexity(LanguageModel(bundles[precision]).score(texts["de"], language="de"))
    assert exact / most < rounded < exact * most
