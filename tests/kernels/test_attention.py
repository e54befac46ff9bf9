"""The attention operators against numpy, through onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import attentions
from attentions import (
    BEAMS,
    CROSS,
    INPUTS,
    SELF,
    Array,
    Beams,
    attend,
    attention,
    beams_of,
    cross,
    halved,
    self_inputs,
    session,
)
from operators import INSTRUCTIONS, outputs_on
from translations import need_kernels

need_kernels()


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("name", BEAMS)
def test_beam_attention_is_numpys(name: str, half: bool) -> None:
    case = beams_of(name).halved() if half else beams_of(name)
    expected = case.expected()
    found = case.run()
    np.testing.assert_allclose(found, expected["attended"], rtol=2e-5, atol=2e-6)
    for cache in ("past_key", "past_value"):
        assert np.array_equal(case.inputs[cache], expected[cache]), "other cells change"


@pytest.mark.parametrize("name", ["many_heads", "a_length_a_row", "greedy"])
def test_threads_change_nothing(name: str) -> None:
    alone, together = beams_of(name), beams_of(name)
    assert np.array_equal(alone.run(threads=1), together.run(threads=3))
    assert np.array_equal(alone.inputs["past_key"], together.inputs["past_key"])


def test_rows_do_not_depend_on_each_other() -> None:
    case = beams_of("beams")
    whole = case.copied().run()
    table, length = case.inputs["cache_indirection"], int(case.lengths[0])
    for row in range(len(whole)):
        # The same row as the only beam of the only sentence, its past gathered.
        places = row // case.beams * case.beams + table.reshape(len(whole), -1)[row, :length]
        alone = Beams(1, 1, case.heads, case.size, [length], 64)
        alone.inputs["qkv"] = case.inputs["qkv"][row : row + 1].copy()
        for name in ("past_key", "past_value"):
            past = case.inputs[name][places, :, np.arange(length)].transpose(1, 0, 2)
            alone.inputs[name][0, :, :length] = past
        assert np.array_equal(alone.run()[0], whole[row])


def test_a_row_that_is_not_a_number_stays_alone() -> None:
    case = beams_of("greedy")
    clean = case.copied().run()
    case.inputs["qkv"][2, 0, 0] = np.nan
    found = case.run()
    assert np.isnan(found[2, 0, : case.size]).all()
    found[2] = clean[2]
    assert np.array_equal(found, clean)


def cross_expected(inputs: Mapping[str, Array]) -> Array:
    sentences, heads, _, size = inputs["key"].shape
    queries = inputs["query"].reshape(sentences, -1, heads, size)
    out = attention(queries, inputs["key"], inputs["value"], inputs["mask"])
    return out.reshape(inputs["query"].shape)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("name", CROSS)
def test_cross_attention_is_numpys(name: str, half: bool) -> None:
    inputs, heads = cross(*CROSS[name]), CROSS[name][2]
    inputs = halved(inputs) if half else inputs
    found = attend("CrossAttention", heads, inputs)
    np.testing.assert_allclose(found, cross_expected(inputs), rtol=2e-5, atol=2e-6)
    assert np.array_equal(found, attend("CrossAttention", heads, inputs, threads=2))


def test_padding_does_not_exist() -> None:
    inputs = cross(1, 2, 2, 64, 19)
    alone = attend("CrossAttention", 2, inputs)
    # Padding on both sides, of numbers that would show.
    padded = {"query": inputs["query"], "mask": np.pad(inputs["mask"], ((0, 0), (3, 17)))}
    for name in ("key", "value"):
        around = ((0, 0), (0, 0), (3, 17), (0, 0))
        padded[name] = np.pad(inputs[name], around, constant_values=np.nan)
    assert np.array_equal(attend("CrossAttention", 2, padded), alone)


def test_a_sentence_without_positions_is_zero() -> None:
    inputs = cross(2, 2, 2, 64, 9)
    inputs["mask"][1] = 0
    found = attend("CrossAttention", 2, inputs)
    np.testing.assert_allclose(found, cross_expected(inputs), rtol=2e-5, atol=2e-6)
    assert not found[2:].any()
    for name in ("key", "value"):
        inputs[name] = inputs[name][:, :, :0]
    inputs["mask"] = inputs["mask"][:, :0]
    assert not attend("CrossAttention", 2, {k: v.copy() for k, v in inputs.items()}).any()


@pytest.mark.parametrize("large", [30.0, 1e4, 1e30])
def test_scores_far_apart(large: float) -> None:
    inputs = cross(2, 3, 2, 64, 20)
    inputs["query"] *= np.float32(large)
    found = attend("CrossAttention", 2, inputs)
    assert np.isfinite(found).all()
    if large < 1e20:
        np.testing.assert_allclose(found, cross_expected(inputs), rtol=2e-3, atol=2e-3)


def test_weights_are_exact() -> None:
    """Two positions, whose shares of the output are 1 and exp(score)."""
    scores = np.linspace(-86, 0, 20001, dtype=np.float32)
    inputs = {
        # Heads of four numbers scale a query by a half, which is exact.
        "query": np.zeros((len(scores), 1, 4), np.float32),
        "key": np.zeros((1, 1, 2, 4), np.float32),
        "value": np.zeros((1, 1, 2, 4), np.float32),
        "mask": np.ones((1, 2), np.int64),
    }
    inputs["query"][:, 0, 0] = 2 * scores
    inputs["key"][0, 0, 1, 0] = 1
    inputs["value"][0, 0] = [[1, 0, 0, 0], [0, 1, 0, 0]]
    found = attend("CrossAttention", 1, inputs)[:, 0].astype(float)
    expected = np.exp(scores.astype(float))
    normal = expected / (1 + expected) > 2.0**-125
    error = found[:, 1] / found[:, 0] / expected - 1
    # Two units in the last place for exp, and half a unit for the output.
    assert abs(error[normal]).max() < 2.5 * 2.0**-23


@pytest.mark.parametrize("name", SELF)
def test_self_attention_is_numpys(name: str) -> None:
    sentences, length, heads, size = SELF[name]
    inputs = self_inputs(*SELF[name])
    found = attend("SelfAttention", heads, inputs)
    parts = inputs["qkv"].reshape(sentences, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
    expected = attention(parts[0].transpose(0, 2, 1, 3), *parts[1:], inputs["mask"])
    expected = expected.reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    assert np.array_equal(found, attend("SelfAttention", heads, inputs, threads=2))


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    inputs = self_inputs(3, 23, 4, 64)
    whole = attend("SelfAttention", 4, inputs)
    for sentence in range(3):
        length = 23 - 2 * sentence
        alone = {
            name: array[sentence : sentence + 1, :length].copy() for name, array in inputs.items()
        }
        assert np.array_equal(
            attend("SelfAttention", 4, alone), whole[sentence : sentence + 1, :length]
        )


def test_no_rows() -> None:
    inputs = {name: array[:0] for name, array in self_inputs(1, 5, 2, 16).items()}
    assert attend("SelfAttention", 2, inputs).shape == (0, 5, 32)
    case = beams_of("beams")
    for name in ("qkv", "past_key", "past_value", "cache_indirection"):
        case.inputs[name] = case.inputs[name][:0].copy()
    assert case.run().shape == (0, 1, 256)
    inputs = {name: array[:0].copy() for name, array in cross(1, 1, 2, 16, 4).items()}
    assert attend("CrossAttention", 2, inputs).shape == (0, 1, 32)


# What is wrong, the input that becomes wrong, and the words of the error.
WRONG_BEAMS = {
    "length_too_large": ("past_length", np.array([64], np.int32), "0 to 63, found 64"),
    "length_negative": ("past_length", np.array([-1], np.int32), "found -1"),
    "lengths_of_other_rows": ("past_length", np.array([1, 2], np.int32), "each of 15 rows"),
    "length_of_none": ("past_length", np.empty(0, np.int32), "found"),
    "no_beams": ("beam_size", np.array([0], np.int32), "found 0"),
    "negative_beams": ("beam_size", np.array([-5], np.int32), "found -5"),
    "no_divisor": ("beam_size", np.array([4], np.int32), "divisor of 15 rows, found 4"),
    "other_table": ("beam_size", np.array([3], np.int32), r"\(5, 3, 64\)"),
    "two_beam_sizes": ("beam_size", np.array([5, 5], np.int32), r"\(1\)"),
    "values_of_other_shape": ("past_value", np.zeros((15, 4, 64, 32), np.float32), "past_value"),
    "short_qkv": ("qkv", np.zeros((15, 1, 767), np.float32), "768"),
    "fewer_rows": ("qkv", np.zeros((14, 1, 768), np.float32), "qkv"),
    "two_tokens": ("qkv", np.zeros((15, 2, 768), np.float32), "qkv"),
}


@pytest.mark.parametrize("name", WRONG_BEAMS)
def test_wrong_inputs_of_beam_attention(name: str) -> None:
    case = beams_of("beams")
    which, array, words = WRONG_BEAMS[name]
    case.inputs[which] = array
    before = case.inputs["past_key"].copy()
    with pytest.raises(
        Exception, match=f"BeamAttention: {which if words == 'found' else ''}.*{words}"
    ):
        case.run()
    assert np.array_equal(case.inputs["past_key"], before)


@pytest.mark.parametrize("beam", [-1, 5, 1 << 30, -(1 << 31)])
@pytest.mark.parametrize("position", [0, 13, 26])
def test_a_table_that_leads_outside(beam: int, position: int) -> None:
    case = beams_of("beams")
    case.inputs["cache_indirection"][1, 2, position] = beam
    with pytest.raises(Exception, match=f"found {beam} in row 7 at position {position}"):
        case.run()


def test_present_must_be_past() -> None:
    case = beams_of("beams")
    with pytest.raises(Exception, match="bound to the buffers of the past"):
        session("BeamAttention", 4).run(None, case.inputs)
    with pytest.raises(Exception, match="bound to the buffers of the past"):
        session("BeamAttention", 4, half=True).run(None, case.halved().inputs)


def test_new_keys_are_rounded_to_half_precision() -> None:
    """To the nearest and even number, whatever the magnitude."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (finite[1:] + finite[:-1]) / 2
    others = [np.inf, -np.inf, np.nan, -0.0, 65504, 65519.99, 65520, -65520, -3.5]
    numbers = np.concatenate([finite, between, -between, np.array(others, np.float32)])
    keys = np.resize(numbers, (len(numbers) // 16 + 1, 16))
    case = Beams(len(keys), 1, 1, 16, [0], 1).halved()
    case.inputs["qkv"][:, 0, 16:32] = keys
    with np.errstate(over="ignore"):
        expected = keys.astype(np.float16)
    case.run()
    found = case.inputs["past_key"].reshape(keys.shape)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    real = ~np.isnan(expected)
    assert np.array_equal(found.view(np.uint16)[real], expected.view(np.uint16)[real])


def test_wrong_inputs_of_the_others() -> None:
    for name, array, words in [
        ("mask", np.ones((3, 20), np.int64), r"\(3, 21\)"),
        ("value", np.zeros((3, 4, 21, 32), np.float32), "value"),
        ("query", np.zeros((14, 1, 256), np.float32), "each of 3 sentences"),
        ("query", np.zeros((15, 1, 255), np.float32), "256"),
        ("key", np.zeros((3, 5, 21, 64), np.float32), "key"),
        ("key", np.zeros((3, 4, 21, 0), np.float32), "key"),
    ]:
        with pytest.raises(Exception, match=f"CrossAttention: .*{words}"):
            attend("CrossAttention", 4, {**cross(*CROSS["beams"]), name: array})
    for name, array, words in [
        ("mask", np.ones((3, 22), np.int64), r"\(3, 23\)"),
        ("qkv", np.zeros((3, 23, 766), np.float32), "3 . 4"),
        ("qkv", np.zeros((3, 23, 0), np.float32), "qkv"),
    ]:
        with pytest.raises(Exception, match=f"SelfAttention: .*{words}"):
            attend("SelfAttention", 4, {**self_inputs(*SELF["sentences"]), name: array})


@pytest.mark.parametrize("op", INPUTS)
def test_newer_operators_are_refused(op: str) -> None:
    with pytest.raises(Exception, match=f"{op}: expected version 1 or older, found version 2"):
        session(op, 4, version=2)
    with pytest.raises(Exception, match=f"{op}: attribute num_heads: .*found 0"):
        session(op, 0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    outputs = outputs_on(
        "plain", attentions.__file__, tmp_path_factory.mktemp("plain") / "plain.npz"
    )
    assert outputs is not None
    return outputs


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_processor_gives_the_same_bits(
    instructions: str, plain: dict[str, Array], tmp_path: Path
) -> None:
    outputs = outputs_on(instructions, attentions.__file__, tmp_path / "outputs.npz")
    if outputs is None:
        pytest.skip(f"this processor has no {instructions}")
    for name, array in outputs.items():
        assert np.array_equal(array, plain[name]), name
