"""Constrained beam search against the enumeration of every sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beam import BeamSearch
from m2m100_onnx.search.demands import Demands
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.ranking import _log_sum_exp
from m2m100_onnx.search.terms import Terms
from scripted import ScriptedState, scripted_logits
from searches import EOS, LogitsState, assert_same, search

VOCAB, LENGTH = 6, 6
PLAIN = SearchOptions(beam_size=400, num_hypotheses=400, max_length=LENGTH, early_stopping="never")


def terms_of(*needs: tuple[Sequence[tuple[int, ...]], int]) -> Terms:
    """Terms that are met by their tokens, wherever they lie."""
    variants = tuple(tuple(some) for some, _ in needs)

    def met(tokens: tuple[int, ...]) -> list[int]:
        return [
            sum(
                tokens[at : at + len(ids)] == ids
                for ids in some
                for at in range(2, len(tokens) - len(ids) + 1)
            )
            for some in variants
        ]

    return Terms(variants, tuple(count for _, count in needs), met, 2)


def run(
    prompts: Sequence[tuple[int, int]], terms: Sequence[Terms | None], options: SearchOptions
) -> list[list[Hypothesis]]:
    state = ScriptedState(list(prompts), VOCAB)
    found = BeamSearch(
        LogitsState(state, state.logits()),
        np.array(prompts),
        eos_id=EOS,
        options=options,
        demands=Demands(terms=tuple(terms)),
    )
    while found.live:
        found.step()
    return [found.hypotheses(n) for n in range(len(prompts))]


def enumerate_all(prompt: tuple[int, int], terms: Terms) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence with its terms that ends, or has `LENGTH` tokens; best first."""
    found = []
    others = [token for token in range(VOCAB) if token != EOS]
    for size in range(LENGTH - 2):
        for body in itertools.product(others, repeat=size):
            lasts = range(VOCAB) if size == LENGTH - 3 else [EOS]
            for last in lasts:
                tokens = (*prompt, *body, last)
                counts = zip(terms.counts, terms.met(tokens), strict=True)
                if all(met >= count for count, met in counts):
                    total = 0.0
                    for at in range(2, len(tokens)):
                        logits = scripted_logits(tokens[:at], VOCAB)
                        total += logits[tokens[at]] - _log_sum_exp(logits[None].copy())[0, 0]
                    found.append((total / (len(tokens) - 1), tokens))
    return sorted(found, key=lambda one: -one[0])


NEEDS: tuple[Terms, ...] = (
    terms_of(([(4,)], 1)),
    terms_of(([(3, 4)], 1)),
    terms_of(([(5, 5), (3, 0, 1)], 1)),
    terms_of(([(1,)], 2), ([(0, 3)], 1)),
)


@pytest.mark.parametrize("needs", NEEDS, ids=range(len(NEEDS)))
@pytest.mark.parametrize("first", [0, 3, 4])
def test_a_wide_search_finds_the_best_of_all_sequences_with_their_terms(
    needs: Terms, first: int
) -> None:
    (found,) = run([(EOS, first)], [needs], PLAIN)
    expected = enumerate_all((EOS, first), needs)
    assert len(expected) > 2
    assert [h.tokens for h in found[:5]] == [tokens for _, tokens in expected[:5]]
    scores = [score for score, _ in expected[:5]]
    np.testing.assert_allclose([h.score for h in found[:5]], scores, atol=1e-5)


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_every_result_has_its_terms_and_what_has_none_is_as_before(beams: int) -> None:
    prompts = [(EOS, n % VOCAB) for n in range(8)]
    needs = [*NEEDS, None, None, NEEDS[1], None]
    options = SearchOptions(beam_size=beams, num_hypotheses=beams, max_length=30)
    together = run(prompts, needs, options)
    for place, (prompt, own) in enumerate(zip(prompts, needs, strict=True)):
        alone = run([prompt], [own], options)[0]
        assert_same(together[place], alone)
        if own is None:
            state = ScriptedState([prompt], VOCAB)
            logits = LogitsState(state, state.logits())
            plain = search(logits, np.array([prompt]), eos_id=EOS, options=options)
            assert together[place] == plain[0]
        else:
            assert together[place]
            for hypothesis in together[place]:
                met = own.met(hypothesis.tokens)
                assert all(a >= b for a, b in zip(met, own.counts, strict=True))


def test_terms_that_do_not_fit_leave_no_result() -> None:
    needs = terms_of(([(3, 4, 5, 1, 0)], 1))
    assert run([(EOS, 1)], [needs], SearchOptions(beam_size=3, max_length=6)) == [[]]
