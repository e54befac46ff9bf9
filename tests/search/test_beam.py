"""Tests the search on a scripted model, against brute force and against itself in other batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search import beam, constraints, ranking, state
from m2m100_onnx.search.finished import Finished
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.search.state import Float32Array, Int64Array
from scripted import ScriptedState, scripted_logits
from searches import EOS, LogitsState, assert_same, describe, search

# --- Brute force ----------------------------------------------------------------------------------


def run_scripted(
    prompt: list[list[int]], vocab: int, options: SearchOptions
) -> tuple[list[list[Hypothesis]], ScriptedState]:
    state = ScriptedState([tuple(row) for row in prompt], vocab)
    ids = np.array(prompt, np.int64).reshape(-1, 2)
    return search(LogitsState(state, state.logits()), ids, eos_id=EOS, options=options), state


def constrained(
    log_probs: np.ndarray[Any, Any], prefix: tuple[int, ...], options: SearchOptions
) -> np.ndarray[Any, Any]:
    """Returns the log-probabilities after the constraints of beam search, in a simple, slow way."""
    out: np.ndarray[Any, Any] = log_probs.copy()
    for token in set(prefix):
        out[token] *= options.repetition_penalty
    size = options.no_repeat_ngram_size
    for token in range(len(out)):
        longer = (*prefix, token)
        grams = [longer[i : i + size] for i in range(len(longer) - size + 1)]
        if size and grams and grams[-1] in grams[:-1]:
            out[token] = -math.inf
    if len(prefix) < options.min_length:
        out[EOS] = -math.inf
    out[list(options.suppress_tokens)] = -math.inf
    return out


def enumerate_sequences(
    prefix: tuple[int, ...], total: float, vocab: int, options: SearchOptions
) -> Iterator[Hypothesis]:
    """Yields every sequence that the model can generate, with its score."""
    logits = scripted_logits(prefix, vocab).astype(np.float64)
    log_probs = constrained(logits - np.log(np.exp(logits).sum()), prefix, options)
    for token in np.flatnonzero(log_probs > -np.inf).tolist():
        longer, score = (*prefix, token), total + float(log_probs[token])
        if token == EOS or len(longer) == options.max_length:
            yield Hypothesis(longer, score / (len(longer) - 1) ** options.length_penalty)
        else:
            yield from enumerate_sequences(longer, score, vocab, options)


@pytest.mark.parametrize("vocab", [5, 8])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.0])
@pytest.mark.parametrize(
    "constraints",
    [
        {},
        {"min_length": 4},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.4},
        {"suppress_tokens": (0, 4)},
        {"min_length": 3, "no_repeat_ngram_size": 2, "suppress_tokens": (3,)},
    ],
    ids=str,
)
def test_exhaustive_beam_is_brute_force(
    vocab: int, length_penalty: float, constraints: dict[str, Any]
) -> None:
    beam_size = (vocab - 1) ** 2 * vocab + vocab  # more than there are sequences
    options = SearchOptions(
        beam_size=beam_size,
        num_hypotheses=beam_size,
        max_length=5,
        length_penalty=length_penalty,
        **constraints,
    )
    prompt = [[EOS, 3], [EOS, 4], [0, 3]]
    results, _ = run_scripted(prompt, vocab, options)
    for row, found in zip(prompt, results, strict=True):
        expected = {h.tokens: h.score for h in enumerate_sequences((*row,), 0.0, vocab, options)}
        assert found[0].tokens == max(expected, key=lambda tokens: expected[tokens])
        # Some of hundreds of scores differ only by rounding, so the scores decide the order.
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len(found) == len(expected) > 1
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], abs=1e-4)


def patient(prompt: tuple[int, ...], vocab: int, options: SearchOptions) -> list[Hypothesis]:
    """Beam search as the paper on patience has it, in a simple, slow way."""
    k, beams, done = options.beam_size, [(0.0, prompt)], list[Hypothesis]()
    wanted = round(k * options.patience)
    while beams and len(done) < wanted:
        grown = []
        for total, tokens in beams:
            logits = scripted_logits(tokens, vocab).astype(np.float64)
            scores = total + logits - np.log(np.exp(logits).sum())
            grown += [(float(scores[token]), (*tokens, token)) for token in range(vocab)]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * k]
        ends = [t[-1] == EOS or len(t) == options.max_length for _, t in grown]
        for (score, tokens), end in zip(grown[:k], ends, strict=False):
            if end:
                norm = (len(tokens) - 1) ** options.length_penalty
                done.append(Hypothesis(tokens, score / norm))
        beams = [pair for pair, end in zip(grown, ends, strict=True) if not end][:k]
        done = sorted(done, key=lambda hypothesis: -hypothesis.score)[:wanted]
    return done[: options.num_hypotheses]


@pytest.mark.parametrize("beam_size", [2, 4])
@pytest.mark.parametrize("patience", [1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
def test_patience_is_brute_force(beam_size: int, patience: float, length_penalty: float) -> None:
    options = SearchOptions(
        beam_size=beam_size,
        num_hypotheses=beam_size,
        patience=patience,
        max_length=14,
        length_penalty=length_penalty,
    )
    found, _ = run_scripted(PROMPTS, SCRIPTED_VOCAB, options)
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        assert_same(hypotheses, patient((*prompt,), SCRIPTED_VOCAB, options))
    if patience > 1:
        hasty, _ = run_scripted(PROMPTS, SCRIPTED_VOCAB, replace(options, patience=1.0))
        pairs = [(a[0].score, b[0].score) for a, b in zip(found, hasty, strict=True)]
        assert all(after >= before - 1e-6 for after, before in pairs)


# --- Batches, and the calls on the state ----------------------------------------------------------

PROMPTS = [[EOS, language] for language in (3, 5, 7, 11, 13, 17, 19, 23)]
SCRIPTED_VOCAB = 24
MIXED = [
    SearchOptions(beam_size=1, max_length=40),
    SearchOptions(beam_size=2, num_hypotheses=2, max_length=40, early_stopping=True),
    SearchOptions(beam_size=4, max_length=40, early_stopping="never", length_penalty=0.0),
    SearchOptions(beam_size=5, num_hypotheses=5, max_length=40, no_repeat_ngram_size=2),
    SearchOptions(beam_size=5, max_length=40, repetition_penalty=1.2, min_length=6),
]


@pytest.mark.parametrize("options", MIXED, ids=describe)
def test_neighbours_do_not_matter(options: SearchOptions) -> None:
    together, _ = run_scripted(PROMPTS, SCRIPTED_VOCAB, options)
    assert len({len(row[0].tokens) for row in together}) > 1
    for order in (range(8), (6, 0, 3), (5, 5, 1), (2,), (7, 6, 5, 4, 3, 2, 1, 0)):
        found, _ = run_scripted([PROMPTS[i] for i in order], SCRIPTED_VOCAB, options)
        assert found == [together[i] for i in order]


@pytest.mark.parametrize("options", MIXED, ids=describe)
def test_no_row_is_stepped_in_vain(options: SearchOptions) -> None:
    """A batch computes exactly the rows that its sentences need alone, and no step after them."""
    _, state = run_scripted(PROMPTS, SCRIPTED_VOCAB, options)
    alone = [run_scripted([prompt], SCRIPTED_VOCAB, options)[1].steps for prompt in PROMPTS]
    assert all(steps == [options.beam_size] * len(steps) for steps in alone)
    expected = [sum(column) for column in itertools.zip_longest(*alone, fillvalue=0)]
    assert state.steps == expected
    assert state.steps[-1] < state.steps[0], "sentences leave before the last one is done"
    assert state.calls[-1] == "step"


@pytest.mark.parametrize("options", MIXED, ids=describe)
def test_select_keeps_sentences_together(options: SearchOptions) -> None:
    _, state = run_scripted(PROMPTS, SCRIPTED_VOCAB, options)
    beams, rows_per_sentence = options.beam_size, 1
    assert ("select", "select") not in itertools.pairwise(state.calls)
    assert state.selects
    for before, rows in state.selects:
        assert rows != list(range(before)), "an identity is not worth a call"
        groups = np.array(rows).reshape(-1, beams) // rows_per_sentence
        assert (groups == groups[:, :1]).all(), "the rows of a sentence come from that sentence"
        kept = groups[:, 0]
        assert len(set(kept)) == len(kept), "a sentence has one place"
        stays = kept < len(kept)
        assert (kept[stays] == np.flatnonzero(stays)).all(), (
            "others fill the places of those that left"
        )
        rows_per_sentence = beams


def test_greedy_pays_one_step_a_token_and_selects_nothing() -> None:
    options = SearchOptions(beam_size=1, max_length=40)
    for prompt in PROMPTS:
        [[hypothesis]], state = run_scripted([prompt], SCRIPTED_VOCAB, options)
        assert state.calls == ["step"] * (len(hypothesis.tokens) - 3)  # prompt and prefill have 3


@pytest.mark.parametrize("beam_size", [1, 4])
def test_prefill_is_enough_for_one_token(beam_size: int) -> None:
    results, state = run_scripted(PROMPTS, 24, SearchOptions(beam_size=beam_size, max_length=3))
    assert state.calls == []
    for prompt, [best] in zip(PROMPTS, results, strict=True):
        assert best.tokens == (*prompt, int(scripted_logits(tuple(prompt), 24).argmax()))


def test_an_empty_batch_is_no_work() -> None:
    results, state = run_scripted([], SCRIPTED_VOCAB, SearchOptions())
    assert results == []
    assert state.calls == []


# --- Few continuations ----------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_sentence_with_no_continuation_is_returned_as_it_stands(beam_size: int) -> None:
    options = SearchOptions(beam_size=beam_size, suppress_tokens=(0, 1, 2, 3, 4))
    results, state = run_scripted([[EOS, 3], [EOS, 4]], 5, options)
    assert results == [[Hypothesis((EOS, 3), 0.0)], [Hypothesis((EOS, 4), 0.0)]]
    assert state.calls == []


@pytest.mark.parametrize("beam_size", [1, 3])
def test_running_out_of_tokens_ends_a_sentence(beam_size: int) -> None:
    options = SearchOptions(beam_size=beam_size, max_length=20, no_repeat_ngram_size=1)
    [[best]], _ = run_scripted([[EOS, 3]], 5, options)
    assert best.tokens[:2] == (EOS, 3)
    assert sorted(best.tokens) == [0, 1, 2, 3, 4]


def test_fewer_hypotheses_than_asked_for_when_there_are_no_more() -> None:
    options = SearchOptions(beam_size=3, num_hypotheses=3, suppress_tokens=(0, 1, 3, 4))
    [found], _ = run_scripted([[EOS, 3]], 5, options)
    assert [h.tokens for h in found] == [(EOS, 3, EOS)]


def test_only_the_best_k_may_end() -> None:
    """Drops `</s>` as the third of four candidates, although its length gives the best score."""
    row = np.array([[-30, -30, 1, 5, 4, -30]], np.float32)

    class Endless:
        def step(self, tokens: Int64Array) -> Float32Array:
            return np.repeat(row, len(tokens), axis=0)

        def select(self, rows: Int64Array) -> None:
            assert rows.max() < 2

    options = SearchOptions(beam_size=2, num_hypotheses=2, max_length=6, length_penalty=-2.0)
    state = LogitsState(Endless(), row.copy())
    [found] = search(state, np.array([[EOS, 0]]), eos_id=EOS, options=options)
    assert [len(h.tokens) for h in found] == [6, 6]


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "worst_finished", "expected"),
    [
        (False, 1.0, -0.5, False),  # -4 / 4 now
        ("never", 1.0, -0.5, True),  # -4 / 20 at max_length
        (False, 0.0, -4.5, True),
        ("never", 0.0, -3.5, False),
        (False, -1.0, -20.0, True),  # -4 * 4 now, and longer ones are worse
        ("never", -1.0, -20.0, True),
        ("never", -1.0, -15.0, False),
        (False, 1.0, -1.0, False),  # an equal score is no improvement
        (True, 1.0, -20.0, False),  # early stopping ends a full sentence
    ],
)
def test_when_a_full_sentence_goes_on(
    early_stopping: Any, length_penalty: float, worst_finished: float, expected: bool
) -> None:
    options = SearchOptions(
        beam_size=2,
        max_length=21,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
    )
    finished = [Hypothesis((EOS, 3, EOS), score) for score in (0.0, worst_finished)]
    found = Finished(1, options, 1)
    assert found._can_improve(finished, -4, 5, 21) is expected
    assert found._can_improve(finished[:1], -4, 5, 21) is True
    assert found._can_improve(finished[:1], -np.inf, 5, 21) is False


@pytest.mark.parametrize("beam_size", [1, 2])
def test_ties_go_to_the_lowest_token(beam_size: int) -> None:
    class Indifferent:
        def step(self, tokens: Int64Array) -> Float32Array:
            return np.zeros((len(tokens), 3000), np.float32)

        def select(self, rows: Int64Array) -> None: ...

    options = SearchOptions(beam_size=beam_size, num_hypotheses=beam_size, max_length=3)
    logits, prompt = np.zeros((1, 3000), np.float32), np.array([[EOS, 9]])
    [found] = search(LogitsState(Indifferent(), logits), prompt, eos_id=EOS, options=options)
    assert [h.tokens for h in found] == [(EOS, 9, 0), (EOS, 9, 1)][:beam_size]


# --- The top-k selection --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 7, 64, 999, 1000, 4096, 20011])
@pytest.mark.parametrize("count", [1, 2, 5, 10, 64])
@pytest.mark.parametrize("kind", ["ties", "infinities", "distinct"])
def test_top_columns_is_a_stable_sort(columns: int, count: int, kind: str) -> None:
    rng = np.random.default_rng(columns * 100 + count)
    values = rng.standard_normal((6, columns)).astype(np.float32)
    if kind != "distinct":
        values = np.round(values * 2)
    if kind == "infinities":
        values[rng.random(values.shape) < np.array([[0.5, 0.9, 0.99, 0.999, 1, 0]]).T] = -np.inf
    count = min(count, columns)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    untouched = values.copy()
    np.testing.assert_array_equal(ranking._top_columns(values, count), expected)
    np.testing.assert_array_equal(values, untouched)


# --- Invalid arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "prompt", "eos_id", "options"),
    [
        (np.zeros((2, 5)), [[2, 3]], 2, {}),
        (np.zeros((1, 1, 5)), [[2, 3]], 2, {}),
        (np.zeros((1, 5)), [2, 3], 2, {}),
        (np.zeros((1, 5)), [[2, 3, 4]], 2, {"max_length": 3}),
        (np.zeros((1, 5)), [[]], 2, {}),
        (np.zeros((1, 5)), [[2, 3]], 5, {}),
        (np.zeros((1, 5)), [[2, 3]], -1, {}),
        (np.zeros((1, 5)), [[2, 3]], 2, {"suppress_tokens": (5,)}),
        (np.full((1, 5), np.nan), [[2, 3]], 2, {}),
        (np.full((1, 5), np.inf), [[2, 3]], 2, {"beam_size": 1}),
    ],
)
def test_arguments_that_do_not_fit(
    logits: Float32Array, prompt: list[Any], eos_id: int, options: dict[str, Any]
) -> None:
    state = ScriptedState([(2, 3)], 5)
    ids = np.array(prompt, np.int64)
    ranked = LogitsState(state, logits.astype(np.float32))
    with pytest.raises(InvalidInputError, match="expected"):
        search(ranked, ids, eos_id=eos_id, options=SearchOptions(**options))
    assert state.calls == []


@pytest.mark.parametrize("module", [beam, constraints, ranking, state])
def test_all_is_complete(module: Any) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
