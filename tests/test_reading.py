"""Scores, states and vectors against PyTorch; batches, errors, and what vectors find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import (
    Cancellation,
    InputTooLongError,
    InvalidInputError,
    StoppedError,
    Translator,
    UnknownLanguageError,
)

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
SOURCES = ["Open the file.", "The package could not be installed.", "", "Save"]
TARGETS = ["Öffnen Sie die Datei.", "Das Paket konnte nicht installiert werden.", "Ja", ""]


@pytest.fixture(scope="module")
def translator(demo_bundle: Path) -> Translator:
    return Translator(demo_bundle)


def labels(translator: Translator, text: str, language: str) -> torch.Tensor:
    """What transformers' tokenizer makes of `text_target`."""
    return torch.tensor([translator.encode(text, language)])


def test_losses_are_those_of_pytorch(
    translator: Translator, torch_model: M2M100ForConditionalGeneration
) -> None:
    scores = translator.score(SOURCES, TARGETS, **EN_DE)
    for source, target, score in zip(SOURCES, TARGETS, scores, strict=True):
        ids = torch.tensor([translator.encode(source, "en")])
        wanted = labels(translator, target, "de")
        with torch.inference_mode():
            out = torch_model(input_ids=ids, labels=wanted)
        assert score.loss == pytest.approx(float(out.loss), abs=1e-4)
        each = torch.log_softmax(out.logits[0], -1).gather(1, wanted[0][:, None])[:, 0]
        assert score.token_log_probs == pytest.approx(each.tolist(), abs=1e-4)
        assert list(score.tokens) == wanted[0].tolist()
        assert score.pieces[0] == "__de__"
        assert score.pieces[-1] == "</s>"
        assert score.sum == pytest.approx(float(each.sum()), abs=1e-3)
        assert score.perplexity == pytest.approx(float(out.loss.exp()), rel=1e-4)
    assert translator.score(SOURCES[0], TARGETS[0], **EN_DE) == scores[0]


def test_entropies_are_those_of_pytorch(
    translator: Translator, torch_model: M2M100ForConditionalGeneration
) -> None:
    scores = translator.score(SOURCES, TARGETS, **EN_DE, entropy=True)
    assert [s.token_log_probs for s in scores] == [
        s.token_log_probs for s in translator.score(SOURCES, TARGETS, **EN_DE)
    ]
    for source, target, score in zip(SOURCES, TARGETS, scores, strict=True):
        ids = torch.tensor([translator.encode(source, "en")])
        with torch.inference_mode():
            out = torch_model(input_ids=ids, labels=labels(translator, target, "de"))
        expected = torch.distributions.Categorical(logits=out.logits[0]).entropy()
        assert score.token_entropies == pytest.approx(expected.tolist(), abs=1e-4)


def test_pairs_of_many_languages(
    translator: Translator, torch_model: M2M100ForConditionalGeneration
) -> None:
    sources, targets = ["Save", "Quitter"], ["Enregistrer", "Quit"]
    languages = {"source_lang": ["en", "fr"], "target_lang": ["fr", "en"]}
    for n, score in enumerate(translator.score(sources, targets, **languages)):
        source, target = (languages[f"{side}_lang"][n] for side in ("source", "target"))
        with torch.inference_mode():
            out = torch_model(
                input_ids=torch.tensor([translator.encode(sources[n], source)]),
                labels=labels(translator, targets[n], target),
            )
        assert score.loss == pytest.approx(float(out.loss), abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_pair_alone_and_in_a_batch(
    precision: str, demo_bundle: Path, packed_bundle: Path, repository: Path
) -> None:
    translator = Translator(demo_bundle if precision == "fp32" else packed_bundle)
    texts = [
        (repository / "demo" / "heldout" / f"dev.{code}").read_text().splitlines()[:30]
        for code in ("en", "de")
    ]
    together = translator.score(*texts, **EN_DE)
    small = translator.score(*texts, **EN_DE, max_batch_tokens=1)
    limited = translator.score(*texts, **EN_DE, max_batch_bytes=1)
    for one, alone, other in zip(together, small, limited, strict=True):
        assert one.token_log_probs == pytest.approx(alone.token_log_probs, abs=1e-4)
        assert other.token_log_probs == alone.token_log_probs
        assert one.tokens == alone.tokens


def test_the_score_of_a_translation(translator: Translator) -> None:
    """A search's score leaves the language token out, which is given to it."""
    for found, text in zip(
        translator.translate_batch(SOURCES[:2], **EN_DE), SOURCES[:2], strict=True
    ):
        score = translator.score(text, found.text, **EN_DE)
        assert score.tokens == found.tokens[1:]
        rest = sum(score.token_log_probs[1:]) / (len(found.tokens) - 1)
        assert found.score == pytest.approx(rest, abs=1e-4)


def test_right_translations_score_higher(translator: Translator, repository: Path) -> None:
    """What scores are for: to find the pairs of a corpus that do not belong together."""
    english, german = (
        (repository / "demo" / "heldout" / f"dev.{code}").read_text().splitlines()[:80]
        for code in ("en", "de")
    )
    right = translator.score(english, german, **EN_DE)
    wrong = translator.score(english, [*german[1:], german[0]], **EN_DE)
    better = [a.mean > b.mean for a, b in zip(right, [wrong[-1], *wrong[:-1]], strict=True)]
    assert np.mean(better) > 0.95


def test_states_are_those_of_pytorch(
    translator: Translator, torch_model: M2M100ForConditionalGeneration
) -> None:
    found = translator.encode_states(SOURCES, source_lang="en")
    for text, states in zip(SOURCES, found, strict=True):
        ids = torch.tensor([translator.encode(text, "en")])
        with torch.inference_mode():
            wanted = torch_model.get_encoder()(ids).last_hidden_state[0].numpy()
        assert states.shape == wanted.shape
        np.testing.assert_allclose(states, wanted, atol=1e-4)
    vectors = translator.embed(SOURCES, source_lang="en")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [states.mean(axis=0) for states in found], atol=1e-6)
    assert translator.embed([], source_lang="en").shape == (0, translator.bundle.config.d_model)


def test_vectors_find_translations(translator: Translator, repository: Path) -> None:
    """Bitext retrieval on held-out lines, by the margin of their cosines."""
    sides = [
        translator.embed(
            (repository / "demo" / "heldout" / f"dev.{code}").read_text().splitlines()[:200],
            source_lang=code,
        )
        for code in ("en", "de")
    ]
    left, right = (
        (side - side.mean(axis=0)) / np.linalg.norm(side - side.mean(axis=0), axis=1)[:, None]
        for side in sides
    )
    nearest = (left @ right.T).argmax(axis=1)
    share = float((nearest == np.arange(len(left))).mean())
    print(share)
    assert share > 0.5


def test_bad_input(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="one for each of 2 sources, found 1"):
        translator.score(["a", "b"], ["c"], **EN_DE)
    with pytest.raises(InvalidInputError, match=r"expected a str for a str.*found list for str"):
        translator.score("a", ["c"], **EN_DE)  # type: ignore[call-overload]
    with pytest.raises(UnknownLanguageError):
        translator.score(["a"], ["b"], source_lang="en", target_lang="xx")
    with pytest.raises(InvalidInputError, match="expected a str, found int") as caught:
        translator.score(["a", "b"], ["c", 5], **EN_DE)  # type: ignore[list-item]
    assert caught.value.position == 1
    with pytest.raises(InputTooLongError) as too_long:
        translator.score(["a", "b"], ["word " * 500, "c"], **EN_DE)
    assert too_long.value.position == 0
    cut = translator.score("a", "word " * 500, **EN_DE, truncate=True)
    assert len(cut.tokens) == translator.bundle.config.max_position_embeddings
    with pytest.raises(TypeError, match="beam_size"):
        translator.score("a", "b", **EN_DE, beam_size=2)
    with pytest.raises(TypeError, match="unknown option: colour"):
        translator.embed(["a"], source_lang="en", colour=2)
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(StoppedError):
        translator.score(["a"], ["b"], **EN_DE, cancellation=cancellation)
