"""The operator Rank against numpy, through onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import operators
from operators import DEMO, RANK, Array, Rank, Weights
from translations import need_kernels

need_kernels()

NO_CELLS = np.empty((0, 2), np.int64)
SMALL = Rank(Weights(64, 700, transposed=True), 3, 5, penalty=1.3)


def assert_equal(found: list[Array], expected: list[Array]) -> None:
    assert np.array_equal(found[1], expected[1])
    for scores, exact in ((found[0], expected[0]), (found[2], expected[2])):
        np.testing.assert_allclose(scores, exact, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", RANK)
def test_rank_is_numpys(name: str) -> None:
    assert_equal(RANK[name].run(), RANK[name].expected())


@pytest.mark.parametrize("name", ["beams", "later_amended", "four_bits"])
def test_no_cells(name: str) -> None:
    nothing = {"seen": NO_CELLS, "banned": NO_CELLS}
    assert_equal(RANK[name].run(**nothing), RANK[name].expected(**nothing))


@pytest.mark.parametrize("name", ["beams", "later_amended", "more_candidates_than_a_chunk"])
def test_threads_change_nothing(name: str) -> None:
    for alone, together in zip(RANK[name].run(), RANK[name].run(threads=3), strict=True):
        assert np.array_equal(alone, together)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(2, 7), slice(4, 13)], ids=str)
def test_rows_do_not_depend_on_each_other(rows: slice) -> None:
    case = RANK["later_amended"]
    hidden_states = case.inputs()["hidden_states"]
    assert hidden_states is not None
    nothing = {"seen": NO_CELLS, "banned": NO_CELLS}
    whole = case.run(**nothing)
    part = case.run(hidden_states=hidden_states[rows], **nothing)
    for all_rows, some in zip(whole[:2], part[:2], strict=True):
        assert np.array_equal(all_rows[rows], some)


@pytest.mark.parametrize("count", [1, 4, 30, 301, 2000])
def test_of_equal_scores_the_lower_token_wins(count: int) -> None:
    """Tokens 0, 1 and 2 have the scores of all others, as often as the vocabulary has room."""
    case = Rank(Weights(64, 2000, transposed=True), 4, count)
    case.weights.numbers[:] = np.resize(case.weights.numbers[:, :3].T, (2000, 64)).T
    case.weights.scale[:] = case.weights.scale[0]
    nothing = {"seen": NO_CELLS, "banned": NO_CELLS}
    for threads in (1, 2):
        found = case.run(threads=threads, **nothing)
        assert_equal(found, case.expected(**nothing))


def test_a_row_that_is_not_a_number_stays_alone() -> None:
    hidden_states = SMALL.inputs()["hidden_states"]
    assert hidden_states is not None
    clean = SMALL.run()
    hidden_states[1, 3] = np.nan
    scores, tokens, _ = SMALL.run(hidden_states=hidden_states)
    assert np.isnan(scores[1]).all()
    for row in (0, 2):
        assert np.array_equal(scores[row], clean[0][row])
        assert np.array_equal(tokens[row], clean[1][row])


def test_a_bias_that_is_not_a_number_shows_in_every_score() -> None:
    bias = np.zeros(700, np.float32)
    bias[650] = np.nan
    scores, _, seen = SMALL.run(bias=bias)
    assert np.isnan(scores).all()
    assert np.isnan(seen).all()


def test_bans_leave_what_is_left() -> None:
    allowed = [7, 300, 699]
    banned = np.array([[1, token] for token in range(700) if token not in allowed])
    scores, tokens, _ = SMALL.run(banned=banned, seen=NO_CELLS)
    assert set(tokens[1, :3].tolist()) == set(allowed)
    np.testing.assert_allclose(np.exp(scores[1, :3].astype(float)).sum(), 1, rtol=1e-6)
    assert (scores[1, 3:] == -np.inf).all()
    assert_equal([scores, tokens, scores[:0, 0]], SMALL.expected(banned=banned, seen=NO_CELLS))


def test_an_infinite_penalty_is_no_crash() -> None:
    for penalty in (0.0, np.inf, np.nan, -1.0):
        SMALL.run(repetition_penalty=np.array(penalty, np.float32))


def test_no_rows() -> None:
    nothing = {"seen": NO_CELLS, "banned": NO_CELLS}
    scores, tokens, seen = SMALL.run(hidden_states=np.empty((0, 64), np.float32), **nothing)
    assert scores.shape == tokens.shape == (0, 5)
    assert seen.shape == (0,)


WRONG: dict[str, tuple[dict[str, Array], str]] = {
    "no_candidates": ({"count": np.array([0])}, "count: expected 1 to 700, found 0"),
    "negative": ({"count": np.array([-(1 << 62)])}, "count: expected 1 to 700, found -4611"),
    "more_than_tokens": ({"count": np.array([701])}, "count: expected 1 to 700, found 701"),
    "two_counts": ({"count": np.array([1, 2])}, r"count: expected shape \(1\)"),
    "two_penalties": (
        {"repetition_penalty": np.ones(2, np.float32)},
        r"repetition_penalty: expected a number, found shape \(2\)",
    ),
    "no_truth": (
        {"renormalized": np.empty(0, np.bool_)},
        r"renormalized: expected a truth value, found shape \(0\)",
    ),
    "other_width": (
        {"hidden_states": np.zeros((3, 65), np.float32)},
        r"hidden_states: expected shape \(rows, 64\), found shape \(3, 65\)",
    ),
    "three_axes": (
        {"hidden_states": np.zeros((3, 1, 64), np.float32)},
        r"hidden_states: expected shape \(rows, 64\), found shape \(3, 1, 64\)",
    ),
    "triples": ({"seen": np.zeros((2, 3), np.int64)}, r"seen: expected shape \(cells, 2\)"),
    "flat": ({"banned": np.zeros(4, np.int64)}, r"banned: expected shape \(cells, 2\)"),
    **{
        f"{name}_{row}_{token}": (
            {name: np.array([[0, 0], [row, token]])},
            rf"{name}: expected cells of 3 rows and 700 tokens, found \({row}, {token}\)",
        )
        for name in ("seen", "banned")
        for row, token in ((3, 0), (-1, 0), (0, 700), (0, -1), (1 << 40, 1), (1, -(1 << 62)))
    },
    "weights": ({"weight": np.zeros((64, 700), np.int8)}, r"weight: expected shape \(700, 64\)"),
    "bias": ({"bias": np.zeros(701, np.float32)}, r"bias: expected shape \(700\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name: str) -> None:
    changed, words = WRONG[name]
    with pytest.raises(Exception, match=f"m2m100.Rank: {words}"):
        SMALL.run(**changed)


def test_newer_operators_are_refused() -> None:
    facts: dict[str, Any] = {**DEMO.attributes, "version": 2}
    inputs = RANK["one_row"].inputs()
    with pytest.raises(
        Exception, match=r"m2m100\.Rank: expected version 1 or older, found version 2"
    ):
        operators.run_operator(
            "Rank",
            inputs,
            facts,
            ("scores", "tokens", "seen_scores"),
            constants=operators.CONSTANTS,
        )
