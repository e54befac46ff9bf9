"""The operators Linear and LayerNorm against numpy, through onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import operators
from operators import INSTRUCTIONS, LINEAR, Array, Linear, Weights, layer_norm, outputs_on
from translations import need_kernels

need_kernels()

PLAIN = Linear(Weights(100, 77), (5,), residual=True)
FOUR_BITS = Linear(Weights(100, 77, 4), (5,), residual=True)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_is_numpys(name: str) -> None:
    case = LINEAR[name]
    found, expected = case.run(), case.expected()
    if not case.relu:
        assert np.array_equal(found, expected)
    else:  # numpy has no shift after ReLU
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("case", [PLAIN, FOUR_BITS], ids=["eight_bits", "four_bits"])
def test_linear_is_nearly_the_product_of_floats(case: Linear) -> None:
    """What rounding a row to 255 levels loses is small beside the row's length."""
    weights, inputs = case.weights, case.inputs()
    x = inputs["x"]
    assert x is not None
    scale = weights.scale.astype(float)
    if weights.bits == 4:
        scale = np.repeat(scale, operators.BLOCK, axis=0)[: weights.inputs]
    matrix = weights.numbers * scale
    found = case.run(residual=None, bias=None)
    error = np.linalg.norm(found - x @ matrix, axis=1)
    assert (error < 0.02 * np.linalg.norm(x @ matrix, axis=1)).all()


@pytest.mark.parametrize("width", [1, 5, 16, 100, 1024])
def test_layer_norm_is_torchs(width: int) -> None:
    random = np.random.default_rng(width)
    x = random.standard_normal((2, 3, width), np.float32) * 5 + 2
    weight, bias = (random.standard_normal(width, np.float32) for _ in range(2))
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x, dtype=torch.float64),
        (width,),
        torch.tensor(weight, dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
    )
    np.testing.assert_allclose(layer_norm(x, weight, bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["vocabulary", "many_rows", "13_rows_1024x130_4_bits", "5_rows_130x640_8_bits", "norm"],
)
def test_threads_change_nothing(name: str) -> None:
    assert np.array_equal(LINEAR[name].run(threads=1), LINEAR[name].run(threads=3))


@pytest.mark.parametrize(
    "name",
    ["vocabulary", "13_rows_1024x130_4_bits", "13_rows_130x640_8_bits", "norm_of_four_bits"],
)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    case = LINEAR[name]
    whole, inputs = case.run(), case.inputs()
    x, residual = inputs["x"], inputs["residual"]
    assert x is not None
    for rows in (slice(0, 1), slice(3, 8), slice(4, 13)):
        part = None if residual is None else residual[rows]
        assert np.array_equal(case.run(x=x[rows], residual=part), whole[rows])


@pytest.mark.parametrize("case", [PLAIN, FOUR_BITS], ids=["eight_bits", "four_bits"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_a_number_stays_alone(case: Linear, wrong: float) -> None:
    x = case.inputs()["x"]
    assert x is not None
    clean = case.run()
    x[2, 99] = wrong
    found = case.run(x=x)
    assert np.isnan(found[2]).all()
    found[2] = clean[2]
    assert np.array_equal(found, clean)


@pytest.mark.parametrize("case", [PLAIN, FOUR_BITS], ids=["eight_bits", "four_bits"])
def test_rows_of_zeros_and_of_tiny_and_huge_numbers(case: Linear) -> None:
    x = np.zeros((5, 100), np.float32)
    x[1] = 1e-42  # too small for a step; such a row counts as zeros
    x[2, ::7] = -1e-38
    x[3, ::7] = 1e30
    found, expected = case.run(x=x), case.expected(x=x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    without = case.run(x=x, bias=None, residual=None)
    assert not without[:2].any()


def test_no_rows() -> None:
    for shape in ((0,), (2, 0)):
        x = np.empty((*shape, 100), np.float32)
        assert PLAIN.run(x=x, residual=None).shape == (*shape, 77)
    assert layer_norm(np.empty((0, 3), np.float32), *np.ones((2, 3), np.float32)).shape == (0, 3)


# The input that becomes wrong, and the words of the error.
WRONG: dict[str, tuple[Linear, dict[str, Array | None], str]] = {
    "short_rows": (
        PLAIN,
        {"x": np.zeros((5, 99), np.float32)},
        r"x: expected rows of 100 numbers, found shape \(5, 99\)",
    ),
    "a_number": (PLAIN, {"x": np.zeros((), np.float32)}, r"x: .*found shape \(\)"),
    "other_weights": (
        PLAIN,
        {"weight": np.zeros((77, 100), np.int8)},
        r"weight: expected shape \(100, 77\), found shape \(77, 100\)",
    ),
    "weights_of_floats": (
        PLAIN,
        {"weight": np.zeros((100, 77), np.float32)},
        "weight: expected signed bytes",
    ),
    "few_bytes": (
        FOUR_BITS,
        {"weight": np.zeros(3849, np.uint8)},
        r"weight: expected shape \(3850\), found shape \(3849\)",
    ),
    "bytes_of_eight_bits": (
        FOUR_BITS,
        {"weight": np.zeros(3850, np.int8)},
        "weight: expected bytes, two numbers of four bits each",
    ),
    "scales_of_large_blocks": (
        FOUR_BITS,
        {"scale": np.zeros((1, 77), np.float16)},
        r"scale: expected shape \(4, 77\), found shape \(1, 77\)",
    ),
    "scales_of_floats": (
        FOUR_BITS,
        {"scale": np.zeros((4, 77), np.float32)},
        "scale: expected 16-bit floats",
    ),
    "fewer_scales": (PLAIN, {"scale": np.zeros(76, np.float32)}, r"scale: expected shape \(77\)"),
    "fewer_biases": (PLAIN, {"bias": np.zeros(76, np.float32)}, r"bias: expected shape \(77\)"),
    "another_residual": (
        PLAIN,
        {"residual": np.zeros((1, 77), np.float32)},
        r"residual: expected shape \(5, 77\), found shape \(1, 77\)",
    ),
    "norm_without_bias": (
        PLAIN,
        {"norm_weight": np.zeros(100, np.float32)},
        "expected both norm_weight and norm_bias, or neither",
    ),
    "a_wider_norm": (
        PLAIN,
        {"norm_weight": np.ones(101, np.float32), "norm_bias": np.ones(101, np.float32)},
        r"norm_weight: expected shape \(100\), found shape \(101\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name: str) -> None:
    case, changed, words = WRONG[name]
    with pytest.raises(Exception, match=f"m2m100.Linear: {words}"):
        case.run(**changed)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"version": 2}, "expected version 1 or older, found version 2: install a newer m2m100"),
        ({"bits": 5}, "attribute bits: expected 4 or 8, found 5"),
        ({"bits": 16}, "attribute bits: expected 4 to 8, found 16"),
        ({"in_features": 0}, "attribute in_features: expected 1 to 65536, found 0"),
        ({"in_features": 1 << 40}, "attribute in_features: .*found 1099511627776"),
        ({"out_features": -1}, "attribute out_features: .*found -1"),
        ({"out_features": 78}, r"weight: expected shape \(100, 78\)"),
        ({"transposed": 1}, r"weight: expected shape \(77, 100\)"),
        ({"transposed": 2}, "attribute transposed: expected 0 to 1, found 2"),
        ({"relu": -1}, "attribute relu: expected 0 to 1, found -1"),
    ],
    ids=str,
)
def test_wrong_attributes(attributes: dict[str, Any], words: str) -> None:
    facts = {**PLAIN.weights.attributes, **attributes}
    with pytest.raises(Exception, match=f"m2m100.Linear: {words}"):
        operators.run_linear(PLAIN.inputs(), facts)


def test_four_bits_are_not_transposed() -> None:
    facts = {**FOUR_BITS.weights.attributes, "transposed": 1}
    with pytest.raises(Exception, match=r"Linear: weight: .*four bits are not transposed"):
        operators.run_linear(FOUR_BITS.inputs(), facts)


@pytest.mark.parametrize("name", ["weight", "scale"])
def test_weights_are_constants(name: str) -> None:
    facts = {**PLAIN.weights.attributes, "relu": 0, "epsilon": 1e-5}
    constants = operators.CONSTANTS - {name}
    with pytest.raises(Exception, match=f"Linear: {name}: expected a constant of the graph"):
        operators.run_operator("Linear", PLAIN.inputs(), facts, constants=constants)


def test_wrong_inputs_of_layer_norm() -> None:
    x, ones = np.ones((2, 5), np.float32), np.ones(5, np.float32)
    for changed, words in [
        ((x, ones[:4], ones), r"weight: expected shape \(5\), found shape \(4\)"),
        ((x, ones, x), r"bias: expected shape \(5\), found shape \(2, 5\)"),
        ((np.ones((), np.float32), ones, ones), r"x: .*found shape \(\)"),
        ((np.ones((2, 0), np.float32), ones[:0], ones[:0]), r"x: .*found shape \(2, 0\)"),
    ]:
        with pytest.raises(Exception, match=f"m2m100.LayerNorm: {words}"):
            layer_norm(*changed)
    inputs = {"x": x, "weight": ones, "bias": ones}
    with pytest.raises(Exception, match="LayerNorm: expected version 1 or older, found version 7"):
        operators.run_operator("LayerNorm", inputs, {"epsilon": 1e-5, "version": 7})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    path = tmp_path_factory.mktemp("plain") / "outputs.npz"
    outputs = outputs_on("plain", operators.__file__, path)
    assert outputs is not None
    return outputs


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_processor_gives_the_same_bits(
    instructions: str, plain: dict[str, Array], tmp_path: Any
) -> None:
    """Those of all three operators, whose cases one process runs."""
    outputs = outputs_on(instructions, operators.__file__, tmp_path / "outputs.npz")
    if outputs is None:
        pytest.skip(f"this processor has no {instructions}")
    assert outputs.keys() == plain.keys()
    for name, array in outputs.items():
        assert np.array_equal(array, plain[name], equal_nan=True), name
