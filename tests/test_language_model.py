"""The language model's face against PyTorch: logits, scores, generation, masks and vectors."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import xlm
from m2m100_onnx import (
    Bundle,
    BundleError,
    Cancellation,
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InputTooLongError,
    InvalidInputError,
    LanguageModel,
    Translator,
    UnknownLanguageError,
)
from m2m100_onnx_export import export
from tokenization import rewrite

TEXTS = ["Open the file and save a copy.", "Close it.", "", "Do you want to delete this folder?"]
MASK = "<special1>"


@pytest.fixture(params=[True, False], ids=["fused", "portable"])
def model(causal_xlm: tuple[Path, Path], request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(causal_xlm[1], fused=request.param, intra_op_num_threads=1)


def torch_logits(reference: Any, row: list[int], lang: int | None) -> torch.Tensor:
    ids = torch.tensor([row])
    langs = None if lang is None else torch.full_like(ids, lang)
    with torch.inference_mode():
        return reference(input_ids=ids, langs=langs).logits[0]  # type: ignore[no-any-return]


def test_logits(causal_xlm: tuple[Path, Path], masked_xlm: tuple[Path, Path]) -> None:
    ids = np.array([[0, 20, 30, 40, 1], [0, 50, 1, 2, 2]])
    langs = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]])
    for checkpoint, bundle in (causal_xlm, masked_xlm):
        reference = xlm.load(checkpoint)
        opened = LanguageModel(bundle)
        with torch.inference_mode():
            wanted = reference(torch.tensor(ids), langs=torch.tensor(langs)).logits.numpy()
            without = reference(torch.tensor(ids)).logits.numpy()
        real = ids != 2
        found = opened(ids, langs=langs)
        np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)
        np.testing.assert_allclose(opened.logits(ids.tolist())[real], without[real], atol=1e-4)
        assert np.abs(wanted - without).max() > 0.1
        mask = real.astype(np.int64)
        assert np.array_equal(opened.logits(ids, langs, mask), found)


def test_scores_of_a_causal_model(causal_xlm: tuple[Path, Path]) -> None:
    opened, reference = LanguageModel(causal_xlm[1]), xlm.load(causal_xlm[0])
    scores = opened.score(TEXTS, language="en")
    for text, score in zip(TEXTS, scores, strict=True):
        row = opened.tokenizer.encode(text, "en")
        logs = torch_logits(reference, row, xlm.LANGUAGES["en"]).log_softmax(-1)
        wanted = [float(logs[n, token]) for n, token in enumerate(row[1:])]
        assert score.tokens == tuple(row[1:])
        assert score.token_log_probs == pytest.approx(wanted, abs=1e-4)
        assert score.sum == pytest.approx(sum(wanted), abs=1e-3)
        assert score.mean == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
        assert score.perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-3)
        assert "".join(score.pieces).replace("</w>", " ").startswith(opened.tokenizer.decode(row))
    other = opened.score(TEXTS[0], language="de")
    assert other.tokens == scores[0].tokens
    assert abs(other.sum - scores[0].sum) > 0.1


def test_pseudo_scores_of_a_masked_model(masked_xlm: tuple[Path, Path]) -> None:
    opened, reference = LanguageModel(masked_xlm[1]), xlm.load(masked_xlm[0])
    scores = opened.score(TEXTS, language=["en", "en", "de", "fr"])
    langs = [xlm.LANGUAGES[code] for code in ("en", "en", "de", "fr")]
    for text, lang, score in zip(TEXTS, langs, scores, strict=True):
        row = opened.tokenizer.encode(text, "fr" if lang == 2 else "en")
        wanted = []
        for at in range(1, len(row) - 1):
            hidden = [*row[:at], opened.tokenizer.mask_id, *row[at + 1 :]]
            wanted.append(float(torch_logits(reference, hidden, lang).log_softmax(-1)[at, row[at]]))
        assert score.tokens == tuple(row[1:-1])
        assert score.token_log_probs == pytest.approx(wanted, abs=1e-4)
    assert scores[2].token_log_probs == ()
    assert math.isnan(scores[2].perplexity)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {"beam_size": 4},
        {"beam_size": 4, "num_hypotheses": 3, "length_penalty": 0.3, "early_stopping": True},
        {"beam_size": 1, "repetition_penalty": 1.7},
        {"beam_size": 3, "no_repeat_ngram_size": 2, "min_length": 15},
        {"beam_size": 2, "early_stopping": "never", "length_penalty": 2.0},
    ],
    ids=str,
)
def test_generation_is_that_of_transformers(
    causal_xlm: tuple[Path, Path], model: LanguageModel, options: dict[str, Any]
) -> None:
    reference = xlm.load(causal_xlm[0])
    names = {"beam_size": "beam_size", "num_hypotheses": "num_return_sequences"}
    theirs = {names.get(name, name): value for name, value in options.items()}
    prompts = ["Open the file", "", "Close", "Das Fenster"]
    languages = ["en", "de", "en", "de"]
    found = model.generate_batch(prompts, language=languages, max_length=24, **options)
    differing = set()
    for text, code, generation in zip(prompts, languages, found, strict=True):
        row = model.tokenizer.encode(text, code)[:-1]
        tokens, score = xlm.generate(reference, row, xlm.LANGUAGES[code], max_length=24, **theirs)
        assert list(generation.tokens) == tokens
        if options["beam_size"] > 1 or "repetition_penalty" not in options:
            assert generation.score == pytest.approx(score, abs=1e-4)
        assert generation.text == model.tokenizer.decode(tokens)
        assert len(generation.hypotheses) == options.get("num_hypotheses", 1)
        differing.add(tuple(tokens[len(row) :]))
    assert len(differing) > 1


def test_new_tokens_are_counted_from_the_prompt(
    causal_xlm: tuple[Path, Path], model: LanguageModel
) -> None:
    reference = xlm.load(causal_xlm[0])
    prompts = ["Open the file and save a copy", "Close"]
    found = model.generate_batch(prompts, language="en", max_new_tokens=5)
    for text, generation in zip(prompts, found, strict=True):
        row = model.tokenizer.encode(text, "en")[:-1]
        tokens, _ = xlm.generate(reference, row, xlm.LANGUAGES["en"], max_new_tokens=5)
        assert list(generation.tokens) == tokens
    assert model.generate("Close", language="en", max_new_tokens=5) == found[1].text
    assert model.generate(prompts, language="en", max_new_tokens=5) == [g.text for g in found]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int4-int8"])
def test_other_precisions(
    make_xlm: Callable[..., tuple[Path, Path]], causal_xlm: tuple[Path, Path], precision: Any
) -> None:
    # Random weights in 32 dimensions round badly.
    near = {"fp16": 0.02, "int8": 0.3, "int4": 1.5, "int4-int8": 1.5}[precision]
    opened = LanguageModel(make_xlm(precision)[1])
    exact = LanguageModel(causal_xlm[1])
    ours, theirs = (m.score(TEXTS, language="en") for m in (opened, exact))
    assert [s.mean for s in ours] == pytest.approx([s.mean for s in theirs], abs=near)
    found = opened.generate_batch(["Open the file"], language="en", max_length=20, beam_size=3)
    assert len(found[0].tokens) > 5
    assert np.isfinite(found[0].score)


def test_results_do_not_depend_on_neighbours(
    causal_xlm: tuple[Path, Path], masked_xlm: tuple[Path, Path], xlm_words: list[str]
) -> None:
    """To the last bit."""
    some = xlm_words[:24]
    for _, bundle in (causal_xlm, masked_xlm):
        opened = LanguageModel(bundle, intra_op_num_threads=1)
        for one, score in zip(some, opened.score(some, language="en"), strict=True):
            assert opened.score(one, language="en") == score
        vectors = opened.encode(some, language="en")
        for one, vector in zip(some, vectors, strict=True):
            assert np.array_equal(opened.encode(one, language="en"), vector)
    opened = LanguageModel(causal_xlm[1], intra_op_num_threads=1)
    options: Any = {"language": "en", "max_length": 60, "beam_size": 3, "truncate": True}
    prompts = [text for text in some if len(opened.tokenizer.encode(text)) < 40]
    together = opened.generate_batch(prompts, **options)
    for text, generation in zip(prompts, together, strict=True):
        assert opened.generate_batch([text], **options) == [generation]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_vectors(masked_xlm: tuple[Path, Path], pooling: str) -> None:
    opened, reference = LanguageModel(masked_xlm[1]), xlm.load(masked_xlm[0])
    found = opened.encode(TEXTS, language="de", pooling=pooling)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([opened.tokenizer.encode(text, "de")])
        with torch.inference_mode():
            langs = torch.full_like(ids, xlm.LANGUAGES["de"])
            states = reference.transformer(ids, langs=langs).last_hidden_state[0]
        wanted = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-4)
    assert opened.encode([], language="de").shape == (0, 32)


def test_a_model_without_a_head(make_xlm: Callable[..., tuple[Path, Path]]) -> None:
    opened = LanguageModel(make_xlm(head=False)[1])
    assert opened.encode(TEXTS, language="en").shape == (4, 32)
    for call in (
        lambda: opened.score("a", language="en"),
        lambda: opened.logits([[0, 1]]),
        lambda: opened.fill_mask(MASK, language="en"),
        lambda: opened.generate("a", language="en"),
    ):
        with pytest.raises(InvalidInputError, match=r"without an LM head|with an LM head"):
            call()


def test_masks_are_filled(masked_xlm: tuple[Path, Path]) -> None:
    opened, reference = LanguageModel(masked_xlm[1]), xlm.load(masked_xlm[0])
    text = f"Open the {MASK} and {MASK} it."
    row = opened.tokenizer.encode(text, "en", mask=True)
    found = opened.fill_mask(text, language="en", top=3)
    probabilities = torch_logits(reference, row, xlm.LANGUAGES["en"]).softmax(-1)
    at = [n for n, token in enumerate(row) if token == opened.tokenizer.mask_id]
    assert len(found) == 2
    for position, fillings in zip(at, found, strict=True):
        best = probabilities[position].topk(3)
        assert [f.token for f in fillings] == best.indices.tolist()
        assert [f.score for f in fillings] == pytest.approx(best.values.tolist(), abs=1e-5)
        for filling in fillings:
            row_filled = [*row[:position], filling.token, *row[position + 1 :]]
            assert filling.text == opened.tokenizer.decode(row_filled)
    (single,) = [opened.fill_mask(f"{MASK} it.", language="en", top=2)]
    assert [type(f).__name__ for f in single] == ["Filling"] * 2


@pytest.mark.parametrize("causal", [True, False])
def test_rows_without_a_token(tmp_path: Path, causal: bool) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    reference = xlm.make_checkpoint(checkpoint, vocab_size=108, causal=causal)
    weights = load_file(reference / "model.safetensors")
    weights["pred_layer.proj.bias"][107] = 1e3
    save_file(weights, reference / "model.safetensors", metadata={"format": "pt"})
    export(checkpoint, bundle, verify_outputs=False)
    opened = LanguageModel(bundle)
    if causal:
        assert opened.generate("open", language="en", max_new_tokens=2).endswith("<unk><unk>")
        return
    (filling,) = opened.fill_mask(f"open {MASK}", language="en", top=1)
    assert (filling.token, filling.piece) == (107, "<unk>")
    assert filling.text.endswith("<unk>")


def test_what_cannot_be_done(causal_xlm: tuple[Path, Path], masked_xlm: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInputError, match="masked language model, found a causal one"):
        LanguageModel(causal_xlm[1]).fill_mask(MASK, language="en")
    opened = LanguageModel(masked_xlm[1])
    with pytest.raises(InvalidInputError, match=r"causal language model, .*\(--causal true\)"):
        opened.generate("a", language="en")
    with pytest.raises(InvalidInputError, match="expected '<special1>' where a token"):
        opened.fill_mask("no mask", language="en")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.score("a"), InvalidInputError, "language: expected one of de, en, fr"),
        (lambda m: m.score("a", language="xx"), UnknownLanguageError, "xx"),
        (lambda m: m.score(["a", 3], language="en"), InvalidInputError, "expected a str"),
        (lambda m: m.score("word " * 70, language="en"), InputTooLongError, "at most 64"),
        (lambda m: m.score(["a"], language=["en", "de"]), InvalidInputError, "1 texts"),
        (lambda m: m.score("a", language="en", beams=3), TypeError, "unknown option: beams"),
        (lambda m: m.generate("", language="en", max_length=65), InvalidInputError, "64 pos"),
        (
            lambda m: m.generate("open it now", language="en", max_length=3),
            InvalidInputError,
            "prompt: expected fewer than 3 tokens",
        ),
        (
            lambda m: m.generate("a", language="en", max_length=9, max_new_tokens=3),
            InvalidInputError,
            "found both",
        ),
        (lambda m: m.encode("a", language="en", pooling="max"), InvalidInputError, "pooling"),
        (lambda m: m.logits([[0, 500]]), InvalidInputError, "ids from 0 to 499, found 500"),
        (lambda m: m.logits([[0, 1]], [[0, 3]]), InvalidInputError, "langs: .* 0 to 2, found 3"),
        (lambda m: m.logits([[0, 1]], [[0]]), InvalidInputError, "langs: expected the shape"),
        (lambda m: m.logits([[0, 1], [0]]), InvalidInputError, "rows of ids of one length"),
        (lambda m: m.logits([[0] * 65]), InvalidInputError, "at most 64 positions, found 65"),
        (lambda m: m.logits([0, 1]), InvalidInputError, "rows of ids of one length"),
    ],
)
def test_bad_input(
    causal_xlm: tuple[Path, Path], call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(LanguageModel(causal_xlm[1]))


def test_an_error_about_one_of_several_has_its_position(causal_xlm: tuple[Path, Path]) -> None:
    with pytest.raises(InputTooLongError) as caught:
        LanguageModel(causal_xlm[1]).score(["a", "word " * 70], language="en")
    assert caught.value.position == 1
    cut = LanguageModel(causal_xlm[1]).score(["a", "word " * 70], language="en", truncate=True)
    assert [len(score.tokens) for score in cut][1] == 63


def test_without_languages(make_xlm: Callable[..., tuple[Path, Path]]) -> None:
    checkpoint, bundle = make_xlm(use_lang_emb=False)
    opened = LanguageModel(bundle)
    assert opened.languages == ()
    assert opened.score("Open it.") == opened.score("Open it.", language="en")
    row = opened.tokenizer.encode("Open it.")
    logs = torch_logits(xlm.load(checkpoint), row, None).log_softmax(-1)
    wanted = float(sum(logs[n, token] for n, token in enumerate(row[1:])))
    assert opened.score("Open it.").sum == pytest.approx(wanted, abs=1e-3)


def test_without_lang2id(causal_xlm: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in causal_xlm[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    rewrite(folder / "config.json", lang2id=None, id2lang=None)
    rewrite(folder / "tokenizer_config.json", lang2id=None, id2lang=None)
    export(folder, tmp_path / "b", verify_outputs=False)
    opened = LanguageModel(tmp_path / "b")
    with pytest.raises(InvalidInputError, match=r"expected lang2id in tokenizer_config\.json"):
        opened.score("Open it.", language="en")
    assert opened.logits([[0, 20, 1]], [[1, 1, 1]]).shape == (1, 3, xlm.VOCABULARY)


def test_kinds_of_bundles(causal_xlm: tuple[Path, Path], tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="kind 'language model'; open it with LanguageModel"):
        Translator(causal_xlm[1])
    with pytest.raises(BundleError, match="kind 'translation'; open it with Translator"):
        LanguageModel(tiny_bundle)
    with pytest.raises(BundleError, match="LanguageModel"):
        Bundle.open(causal_xlm[1])


def test_calls_end_early(causal_xlm: tuple[Path, Path]) -> None:
    opened = LanguageModel(causal_xlm[1])
    cancellation = Cancellation()
    cancellation.cancel()
    for call in (opened.score, opened.encode, opened.generate):
        with pytest.raises(Cancelled):
            call(["a"], language="en", cancellation=cancellation)
        with pytest.raises(DeadlineExceeded):
            call(["a"], language="en", timeout=0.0)
    opened.close()
    with pytest.raises(ClosedError, match="the LanguageModel is closed"):
        opened.score("a", language="en")
    with pytest.raises(ClosedError):
        opened.logits([[0, 1]])


def test_copies_and_threads(causal_xlm: tuple[Path, Path]) -> None:
    with LanguageModel(causal_xlm[1]) as opened:
        expected = opened.score(TEXTS, language="en"), opened.generate("Open", language="en")
        for other in (copy.copy(opened), pickle.loads(pickle.dumps(opened))):
            assert other.score(TEXTS, language="en") == expected[0]
        found: list[Any] = []

        def work() -> None:
            found.append(
                (opened.score(TEXTS, language="en"), opened.generate("Open", language="en"))
            )

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4
        assert "causal, 3 languages" in repr(opened)
