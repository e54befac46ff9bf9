"""Tests what a caller can do between two steps: drop sentences, read results and prefixes."""

from __future__ import annotations

import numpy as np
import pytest

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beam import BeamSearch
from m2m100_onnx.search.hypothesis import Hypothesis
from scripted import ScriptedState
from searches import EOS, LogitsState, describe, search

PROMPTS = [[EOS, language] for language in (3, 5, 7, 11, 13, 17, 19, 23)]
VOCAB = 24
OPTIONS = [
    SearchOptions(beam_size=1, max_length=40),
    SearchOptions(beam_size=4, max_length=40, early_stopping="never", length_penalty=0.0),
    SearchOptions(beam_size=5, num_hypotheses=5, max_length=40, no_repeat_ngram_size=2),
]


def begin(options: SearchOptions) -> tuple[BeamSearch, ScriptedState]:
    state = ScriptedState([tuple(row) for row in PROMPTS], VOCAB)
    ranked = LogitsState(state, state.logits())
    return BeamSearch(ranked, np.array(PROMPTS), eos_id=EOS, options=options), state


def alone(options: SearchOptions) -> list[list[Hypothesis]]:
    """Returns the results of each sentence alone."""
    found = []
    for row in PROMPTS:
        state = ScriptedState([tuple(row)], VOCAB)
        ranked = LogitsState(state, state.logits())
        found += search(ranked, np.array([row]), eos_id=EOS, options=options)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=describe)
def test_a_step_says_which_sentences_ended(options: SearchOptions) -> None:
    run, state = begin(options)
    expected, ended = alone(options), []
    while run.live:
        before = run.live
        now = run.step()
        assert set(now) == set(before) - set(run.live)
        # The caller can read the results of an ended sentence while the others continue.
        for sentence in now:
            assert run.hypotheses(sentence) == expected[sentence]
        ended += now
    assert sorted(ended) == list(range(len(PROMPTS)))
    assert run.step() == ()
    assert state.calls[-1] == "step"


@pytest.mark.parametrize("options", OPTIONS, ids=describe)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_dropped_sentence_leaves_the_others_as_they_were(
    options: SearchOptions, after: int
) -> None:
    expected = alone(options)
    run, state = begin(options)
    for _ in range(after):
        run.step()
    dropped = [run.live[0], run.live[-1]]
    for sentence in dropped:
        run.drop(sentence)
        assert sentence not in run.live
    while run.live:
        run.step()
    for sentence, hypotheses in enumerate(expected):
        assert run.hypotheses(sentence) == ([] if sentence in dropped else hypotheses)
    # The next step no longer computes their rows.
    assert state.steps[after] <= (len(PROMPTS) - 2) * options.beam_size


def test_dropping_all_ends_the_search() -> None:
    run, state = begin(OPTIONS[1])
    run.step()
    steps = list(state.steps)
    for sentence in run.live:
        run.drop(sentence)
    assert run.live == ()
    assert run.step() == ()
    assert state.steps == steps


@pytest.mark.parametrize("options", OPTIONS, ids=describe)
def test_a_settled_prefix_only_grows_and_every_result_has_it(options: SearchOptions) -> None:
    run, _ = begin(options)
    settled: dict[int, tuple[int, ...]] = {n: tuple(row) for n, row in enumerate(PROMPTS)}
    steps = 0
    while run.live:
        for sentence in run.live:
            now = run.settled(sentence)
            assert now[: len(settled[sentence])] == settled[sentence]
            assert len(now) <= 2 + steps
            settled[sentence] = now
        run.step()
        steps += 1
    for sentence, prefix in settled.items():
        for hypothesis in run.hypotheses(sentence):
            assert hypothesis.tokens[: len(prefix)] == prefix
        if options.beam_size == 1:
            (best,) = run.hypotheses(sentence)
            assert len(best.tokens) == len(prefix) + 1
    if options.beam_size > 1:
        assert any(len(prefix) > 2 for prefix in settled.values())


def test_sentences_that_are_not_live_are_named() -> None:
    run, _ = begin(OPTIONS[0])
    run.drop(3)
    for call in (run.drop, run.settled):
        for sentence in (3, 8, -1):
            with pytest.raises(InvalidInputError, match=rf"live \(0, 1, 2, 4.*found {sentence}"):
                call(sentence)
    for sentence in (8, -1):
        with pytest.raises(InvalidInputError, match=rf"0 to 7, found {sentence}"):
            run.hypotheses(sentence)
