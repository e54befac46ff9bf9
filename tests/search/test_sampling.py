"""Sampling: the chances against transformers' warpers, frequencies, and what a seed reproduces."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from m2m100_onnx import LanguageModel, Translator
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.ranking import rank
from m2m100_onnx.search.sampling import SamplingSearch, chances
from m2m100_onnx.search.state import Ranking
from m2m100_onnx_export import export
from scripted import ScriptedState, scripted_logits
from searches import EOS, LogitsState
from xlm import make_checkpoint

VOCAB = 24
PROMPTS = [[EOS, language] for language in (3, 5, 7, 11, 13)]
SAMPLE = SearchOptions(do_sample=True, beam_size=1, seed=5, max_length=20)


def begin(prompts: list[list[int]], options: SearchOptions) -> SamplingSearch:
    state = ScriptedState([tuple(row) for row in prompts], VOCAB)
    decoder = LogitsState(state, state.logits())
    return SamplingSearch(
        decoder, np.array(prompts, np.int64), eos_id=EOS, options=options, keys=prompts
    )


def run(prompts: list[list[int]], options: SearchOptions) -> list[list[Hypothesis]]:
    search = begin(prompts, options)
    while search.live:
        search.step()
    return [search.hypotheses(n) for n in range(len(prompts))]


# --- The chances ----------------------------------------------------------------------------------


def warped(logits: np.ndarray, options: SearchOptions) -> np.ndarray:
    """The chances of all tokens by transformers' own warpers, in its order."""
    steps: list[Any] = [TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(MinPLogitsWarper(options.min_p))
    scores = LogitsProcessorList(steps)(None, torch.tensor(logits))
    return torch.softmax(scores.double(), -1).numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [1, 7, 50, 0])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.1), (0.6, 0.3)])
def test_chances_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    options = replace(SAMPLE, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.random.default_rng(0).normal(scale=3, size=(9, 300)).astype(np.float32)
    ranked = rank(logits.copy(), Ranking(count=top_k or 300, renormalized=True))
    found = np.zeros(logits.shape)
    np.put_along_axis(found, ranked.tokens, chances(ranked.scores, options), axis=1)
    wanted = warped(logits, options)
    # A token at the very edge of top_p may be in or out by rounding; none is here.
    np.testing.assert_array_equal(found > 0, wanted > 0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_best_token_stays_whatever_is_cut() -> None:
    scores = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    found = chances(scores, replace(SAMPLE, top_p=1e-6, min_p=1.0))
    np.testing.assert_array_equal(found, [[1, 0, 0, 0]])


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.5}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}], ids=str
)
def test_frequencies_are_the_chances(options: dict[str, Any]) -> None:
    """A chi-square test of 4,000 samples of one token; the seed makes its outcome the same."""
    asked = replace(SAMPLE, max_length=3, num_hypotheses=1000, **{"temperature": 3.0, **options})
    counts: Counter[int] = Counter()
    for seed in range(4):
        (found,) = run([[EOS, 3]], replace(asked, seed=seed))
        counts.update(h.tokens[2] for h in found)
    wanted = warped(scripted_logits((EOS, 3), VOCAB)[None], asked)[0] * 4000
    assert sum(counts.values()) == 4000
    assert all(wanted[token] > 0 for token in counts)
    likely = np.flatnonzero(wanted >= 5)
    statistic = sum((counts[int(t)] - wanted[t]) ** 2 / wanted[t] for t in likely)
    freedom = len(likely) - 1
    assert freedom > 2
    # The 99.9th percentile, by Wilson and Hilferty's approximation.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


# --- What a seed reproduces -----------------------------------------------------------------------


def test_neighbours_and_order_do_not_matter() -> None:
    options = replace(SAMPLE, num_hypotheses=3)
    together = run(PROMPTS, options)
    assert len({h.tokens for found in together for h in found}) > 10
    for order in ((4, 3, 2, 1, 0), (2,), (3, 3, 0)):
        again = run([PROMPTS[n] for n in order], options)
        assert again == [together[n] for n in order]


def test_more_samples_begin_with_fewer() -> None:
    few, many = (run(PROMPTS, replace(SAMPLE, num_hypotheses=n)) for n in (2, 5))
    assert [found[:2] for found in many] == few


def test_seeds_differ_and_no_seed_differs_each_time() -> None:
    options = replace(SAMPLE, num_hypotheses=4)
    assert run(PROMPTS, options) == run(PROMPTS, options)
    assert run(PROMPTS, options) != run(PROMPTS, replace(options, seed=6))
    free = replace(options, seed=None)
    assert run(PROMPTS, free) != run(PROMPTS, free)


# --- The search -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 0, "temperature": 3.0},
        {"min_length": 6, "no_repeat_ngram_size": 2},
        {"suppress_tokens": (3, 4), "length_penalty": 0.0},
    ],
    ids=str,
)
def test_samples_are_sequences_of_the_model(options: dict[str, Any]) -> None:
    asked = replace(SAMPLE, num_hypotheses=6, **options)
    lengths = set()
    for prompt, found in zip(PROMPTS, run(PROMPTS, asked), strict=True):
        assert len(found) == 6
        for hypothesis in found:
            tokens = hypothesis.tokens
            assert list(tokens[:2]) == prompt
            assert (tokens[-1] == EOS) != (len(tokens) == 20 and tokens[-1] != EOS)
            assert EOS not in tokens[1:-1]
            assert len(tokens) > asked.min_length
            lengths.add(len(tokens))
            if options:
                pairs = list(pairwise(tokens))
                assert len(set(pairs)) == len(pairs) or not asked.no_repeat_ngram_size
                assert not {*asked.suppress_tokens} & {*tokens[2:]}
                continue
            total = 0.0
            for place in range(2, len(tokens)):
                logits = scripted_logits(tokens[:place], VOCAB).astype(np.float64)
                total += logits[tokens[place]] - np.log(np.exp(logits).sum())
            assert hypothesis.score == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    assert len(lengths) > 3


def test_a_sentence_without_a_next_token_keeps_what_it_has() -> None:
    options = replace(SAMPLE, suppress_tokens=tuple(range(VOCAB)), num_hypotheses=2)
    for found in run(PROMPTS[:2], options):
        assert [len(h.tokens) for h in found] == [2, 2]


def test_a_dropped_sentence_leaves_the_others_alone() -> None:
    options = replace(SAMPLE, num_hypotheses=3)
    wanted = run(PROMPTS, options)
    for when in (0, 1, 3):
        search = begin(PROMPTS, options)
        for _ in range(when):
            search.step()
        search.drop(2)
        while search.live:
            search.step()
        assert search.hypotheses(2) == []
        found = [search.hypotheses(n) for n in (0, 1, 3, 4)]
        assert found == [wanted[n] for n in (0, 1, 3, 4)]


def test_what_is_settled_is_in_every_sample() -> None:
    options = replace(SAMPLE, num_hypotheses=2, temperature=0.3)
    search = begin(PROMPTS, options)
    seen: dict[int, list[tuple[int, ...]]] = {n: [] for n in range(len(PROMPTS))}
    while search.live:
        for n in search.live:
            seen[n].append(search.settled(n))
        search.step()
    for n, prefixes in seen.items():
        for hypothesis in search.hypotheses(n):
            assert all(hypothesis.tokens[: len(p)] == p for p in prefixes)
    assert max(len(p) for prefixes in seen.values() for p in prefixes) > 3


# --- Through the translator -----------------------------------------------------------------------

TEXTS = ["Open the file.", "The package could not be installed.", "Save a copy."]
EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}


def test_scores_are_those_of_pytorch(
    demo_bundle: Path, torch_model: M2M100ForConditionalGeneration
) -> None:
    translator = Translator(demo_bundle)
    found = translator.translate_batch(
        TEXTS, **EN_DE, do_sample=True, seed=3, num_hypotheses=3, temperature=1.5
    )
    assert len({h.text for t in found for h in t.hypotheses}) > 5
    for text, translation in zip(TEXTS, found, strict=True):
        for hypothesis in translation.hypotheses:
            ids = torch.tensor([hypothesis.tokens])
            with torch.inference_mode():
                logits = torch_model(
                    input_ids=torch.tensor([translator.encode(text, "en")]),
                    decoder_input_ids=ids[:, :-1],
                ).logits
            scores = torch.log_softmax(logits[0], -1).gather(1, ids[0, 1:, None])[1:]
            wanted = float(scores.sum()) / (ids.shape[1] - 1)
            assert hypothesis.score == pytest.approx(wanted, abs=1e-3)


def test_a_text_alone_and_in_a_batch(packed_bundle: Path, graphs: dict[str, bool]) -> None:
    translator = Translator(packed_bundle, **graphs)
    options: dict[str, Any] = {**EN_DE, "do_sample": True, "seed": 1, "num_hypotheses": 3}
    together = translator.translate_batch(TEXTS, **options)
    alone = [translator.translate_batch([text], **options)[0] for text in TEXTS]
    assert together == alone
    assert translator.translate_batch(TEXTS[::-1], **options) == alone[::-1]
    other = translator.translate_batch(TEXTS, **{**options, "target_lang": "fr"})
    assert [t.tokens for t in other] != [t.tokens for t in alone]


def test_one_likeliest_token_is_greedy_search(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)
    greedy = translator.translate(TEXTS, **EN_DE, beam_size=1)
    assert translator.translate(TEXTS, **EN_DE, do_sample=True, top_k=1) == greedy


def test_a_language_model_samples(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    model = LanguageModel(export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle)
    options: dict[str, Any] = {"language": "en", "do_sample": True, "max_new_tokens": 12}
    prompts = ["ba ca", "da"]
    first = model.generate(prompts, seed=2, **options)
    assert model.generate(prompts, seed=2, **options) == first
    assert model.generate(prompts[1:], seed=2, **options) == first[1:]
    assert model.generate(prompts, seed=3, **options) != first
