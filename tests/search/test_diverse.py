"""Compares diverse beam search with transformers' of 4.55, on the demo checkpoint."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from diverse_golden import DIRECTIONS, GOLDEN, MAX_LENGTH, SETTINGS, texts
from m2m100_onnx import Translator
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beam import BeamSearch
from scripted import ScriptedState
from searches import EOS, LogitsState, assert_same, search

EXPECTED = json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.mark.parametrize("number", range(len(SETTINGS)))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_groups_are_those_of_transformers(
    translator: Translator, direction: str, number: int
) -> None:
    settings, beams = SETTINGS[number], SETTINGS[number]["beam_size"]
    expected = EXPECTED[number * len(DIRECTIONS) + DIRECTIONS.index(direction)]
    source, target = direction.split("-")
    options: dict[str, Any] = {"max_length": MAX_LENGTH, **settings, "num_hypotheses": beams}
    sentences = texts(direction)
    found = translator.translate_batch(sentences, source_lang=source, target_lang=target, **options)
    assert len(sentences) > 10
    differing = 0
    for place, translation in enumerate(found):
        rows = slice(place * beams, (place + 1) * beams)
        hypotheses = translation.hypotheses
        theirs = [tuple(row) for row in expected["tokens"][rows]]
        np.testing.assert_allclose(
            [h.score for h in hypotheses], expected["scores"][rows], atol=2e-4
        )
        differing += [h.tokens for h in hypotheses] != theirs
    # Equal scores may change places.
    assert differing == 0


def test_a_group_does_not_depend_on_what_is_beside_its_sentence() -> None:
    options = SearchOptions(
        beam_size=4, num_hypotheses=4, num_beam_groups=2, diversity_penalty=1.0, max_length=12
    )
    prompt = np.array([[EOS, n] for n in range(20, 32)])

    def run(prompts: Any) -> Any:
        state = ScriptedState([tuple(row) for row in prompts.tolist()], 40)
        return search(LogitsState(state, state.logits()), prompts, eos_id=EOS, options=options)

    together = run(prompt)
    for place in range(len(prompt)):
        assert_same(together[place], run(prompt[place : place + 1])[0])


def test_the_penalty_is_hamming_diversity() -> None:
    """The second group's first token is the best but for what the first group chose."""
    options = SearchOptions(
        beam_size=2, num_hypotheses=2, num_beam_groups=2, diversity_penalty=1e3, max_length=12
    )
    for first in range(20, 40):
        prompt = np.array([[EOS, first]])
        state = ScriptedState([(EOS, first)], 40)
        run = BeamSearch(LogitsState(state, state.logits()), prompt, eos_id=EOS, options=options)
        logits = state.logits()[0].copy()
        logits[EOS] = -np.inf
        best, second = np.argsort(-logits, kind="stable")[:2]
        run.step()
        if run.live:
            assert run._beams.tokens[:, 0, 2].tolist() == [best, second]
