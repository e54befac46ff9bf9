"""Translations on CUDA against the CPU's, which are transformers', and against transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import DependencyError, InvalidInputError, LanguageModel, Translator
from m2m100_onnx_export import export
from xlm import make_checkpoint

PAIRS = (("en", "de"), ("zh", "fr"), ("ru", "en"), ("fr", "es"))
BEAMS = (1, 5)


def lines(repository: Path, language: str, count: int) -> list[str]:
    return (repository / "demo" / "heldout" / f"dev.{language}").read_text().splitlines()[:count]


def share(found: list[Any], wanted: list[Any]) -> float:
    assert len(found) == len(wanted) > 0
    return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))


@pytest.fixture(scope="module")
def cpu(demo_bundle: Path) -> Translator:
    return Translator(demo_bundle)


@pytest.fixture(scope="module")
def cuda(demo_bundle: Path) -> Translator:
    return Translator(demo_bundle, device="cuda", fused=True)


@pytest.fixture(scope="module")
def half(demo_bundle_fp16: Path) -> Translator:
    return Translator(demo_bundle_fp16, device="cuda", fused=True)


@pytest.mark.parametrize("beams", BEAMS)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_float32_translates_as_a_cpu(
    repository: Path, cpu: Translator, cuda: Translator, source: str, target: str, beams: int
) -> None:
    assert cuda.model.kind == "fused"
    texts = lines(repository, source, 100)
    found, wanted = (
        t.translate_batch(
            texts,
            source_lang=source,
            target_lang=target,
            beam_size=beams,
            num_hypotheses=beams,
        )
        for t in (cuda, cpu)
    )
    rows = [[row.hypotheses for row in some] for some in (found, wanted)]
    tokens, scores = (
        [[[getattr(h, name) for h in row] for row in some] for some in rows]
        for name in ("tokens", "score")
    )
    assert tokens[0] == tokens[1]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


@pytest.mark.parametrize("beams", BEAMS)
def test_portable_graphs_translate_alike(
    repository: Path, demo_bundle: Path, cuda: Translator, beams: int
) -> None:
    portable = Translator(demo_bundle, device="cuda")
    assert portable.model.kind == "portable"
    options: dict[str, Any] = {"source_lang": "en", "target_lang": "ru", "beam_size": beams}
    texts = lines(repository, "en", 60)
    assert portable.translate(texts, **options) == cuda.translate(texts, **options)


@pytest.mark.parametrize("beams", BEAMS)
def test_float16_translates_as_transformers(
    repository: Path, demo_checkpoint: Path, half: Translator, beams: int
) -> None:
    """Token for token but where two tokens tie within float16's rounding."""
    model = M2M100ForConditionalGeneration.from_pretrained(demo_checkpoint, dtype=torch.float16)
    model = model.to("cuda").eval()
    tokenizer = half.tokenizer
    found, wanted = [], []
    for text in lines(repository, "en", 120):
        row = half.translate_batch([text], source_lang="en", target_lang="de", beam_size=beams)[0]
        found.append(list(row.tokens))
        ids = torch.tensor([tokenizer.encode(text, "en")]).cuda()
        with torch.inference_mode():
            best = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                forced_bos_token_id=tokenizer.language_id("de"),
                num_beams=beams,
                do_sample=False,
            )
        wanted.append(best[0].tolist())
    print(beams, share(found, wanted))
    assert share(found, wanted) > 0.95


@pytest.mark.parametrize("beams", BEAMS)
def test_float16_is_close_to_float32(
    repository: Path, cuda: Translator, half: Translator, beams: int
) -> None:
    options: dict[str, Any] = {"source_lang": "en", "target_lang": "fr", "beam_size": beams}
    texts = lines(repository, "en", 200)
    found = share(half.translate(texts, **options), cuda.translate(texts, **options))
    print(beams, found)
    assert found > 0.93


@pytest.mark.parametrize("beams", BEAMS)
def test_a_batch_is_its_sentences(
    repository: Path, cuda: Translator, half: Translator, beams: int
) -> None:
    options: dict[str, Any] = {"source_lang": "en", "target_lang": "zh", "beam_size": beams}
    texts = lines(repository, "en", 60)
    for translator in (cuda, half):
        alone = [translator.translate(text, **options) for text in texts]
        assert share(translator.translate(texts, **options), alone) > 0.98


@pytest.mark.parametrize("beams", BEAMS)
def test_long_translations_outgrow_their_buffers(
    repository: Path, cpu: Translator, cuda: Translator, beams: int
) -> None:
    options: dict[str, Any] = {
        "source_lang": "en",
        "target_lang": "de",
        "beam_size": beams,
        "min_length": 150,
        "max_length": 160,
    }
    texts = lines(repository, "en", 6)
    assert cuda.translate(texts, **options) == cpu.translate(texts, **options)


def test_many_threads(repository: Path, cuda: Translator) -> None:
    texts = lines(repository, "de", 40)
    options: dict[str, Any] = {"source_lang": "de", "target_lang": "en", "beam_size": 5}
    wanted = cuda.translate(texts, **options)
    found: dict[int, Any] = {}

    def call(number: int) -> None:
        found[number] = cuda.translate(texts, **options)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(4)] == [wanted] * 4


def test_penalties_and_bans(repository: Path, cpu: Translator, cuda: Translator) -> None:
    for options in (
        {"beam_size": 5, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"beam_size": 1, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    ):
        named: dict[str, Any] = {"source_lang": "en", "target_lang": "es", **options}
        texts = lines(repository, "en", 60)
        assert cuda.translate(texts, **named) == cpu.translate(texts, **named)


@pytest.mark.parametrize("fused", [True, None])
def test_language_models(tmp_path: Path, fused: bool | None) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", emb_dim=128, n_heads=4, max_position_embeddings=128
    )
    bundle = export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle
    cpu, cuda = LanguageModel(bundle), LanguageModel(bundle, device="cuda", fused=fused)
    assert cuda.model.kind == ("fused" if fused else "portable")
    prompts = ["ab cd ef", "ga", "ha ia ja ka la"]
    for beams in BEAMS:
        options: dict[str, Any] = {"language": "en", "beam_size": beams, "max_new_tokens": 90}
        assert cuda.generate(prompts, **options) == cpu.generate(prompts, **options)
    scores = [m.score(prompts, language="en") for m in (cpu, cuda)]
    sums = [[sum(score.token_log_probs) for score in found] for found in scores]
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-4)


def test_what_cuda_does_not_run(demo_checkpoint: Path, demo_bundle: Path, tmp_path: Path) -> None:
    four = export(demo_checkpoint, tmp_path / "int4", precision="int4", verify_outputs=False).bundle
    with pytest.raises(InvalidInputError, match="runs on the CPU alone"):
        Translator(four, device="cuda")
    with pytest.raises(DependencyError, match="expected cuda, which did not start"):
        Translator(demo_bundle, device="cuda:77")


def test_eight_bits_run_in_portable_graphs(
    repository: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    eight = export(
        demo_checkpoint, tmp_path / "int8", precision="int8", verify_outputs=False
    ).bundle
    cpu, cuda = Translator(eight, fused=False), Translator(eight, device="cuda")
    assert cuda.model.kind == "portable"
    texts = lines(repository, "en", 60)
    options: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "beam_size": 5}
    found = share(cuda.translate(texts, **options), cpu.translate(texts, **options))
    print(found)
    assert found > 0.9
