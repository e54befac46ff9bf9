"""Random runs of every operator: each must give numpy's result, or an error.

As a program it runs the cases FIRST up to LAST of an operator: `fuzzing.py Linear 0 100`. It names
a case before it runs, so that the last one named is the one at which a process died.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

import operators
from attentions import OUTPUTS, Beams, attention, cross, self_inputs
from operators import CONSTANTS, Linear, Rank, Weights, run_operator

Array = npt.NDArray[Any]
Inputs = Mapping[str, Any]
"""Arrays by name; None is left out."""
Attributes = Mapping[str, Any]

NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 7, 2**16, 2**31, 2**40, 2**63 - 1)
"""What integers of an operator are replaced by."""
DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")


@dataclass(frozen=True)
class Case:
    """One node and what it is given, and the same in numpy.

    Attributes:
        op: the operator's name.
        inputs: by name in the node's order; None is left out.
        attributes: of the node; None is left out.
        expected: returns the outputs in numpy, or None for one that may be anything; raises
            whatever it likes where there must be an error.
        constants: the inputs that belong to the graph.
        outputs: the names of the outputs.
        in_place: outputs that are bound to the buffers of inputs.
        changed: what was made wrong, or "nothing".
    """

    op: str
    inputs: Inputs
    attributes: Attributes
    expected: Callable[[Inputs, Attributes], Sequence[Array | None]]
    constants: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ("y",)
    in_place: Mapping[str, str] | None = None
    changed: str = "nothing"

    def run(self, threads: int) -> list[Array]:
        return run_operator(
            self.op,
            {name: None if array is None else array.copy() for name, array in self.inputs.items()},
            self.attributes,
            self.outputs,
            constants=self.constants,
            in_place=self.in_place or {},
            threads=threads,
        )

    def check(self, threads: int) -> bool:
        """Runs the case. Returns whether there was a result, which is then numpy's."""
        try:
            found = self.run(threads)
        except Exception as error:
            # A run with a binding gives every error of onnxruntime as a RuntimeError.
            theirs = type(error).__module__.startswith("onnxruntime")
            if not theirs and type(error) is not RuntimeError:
                raise
            if self.changed == "nothing":
                raise AssertionError("what is right was refused") from error
            if not theirs and f"m2m100.{self.op}: " not in str(error):
                raise AssertionError("the error names no operator") from error
            return False
        with np.errstate(all="ignore"):
            expected = self.expected(self.inputs, self.attributes)
        for name, one, other in zip(self.outputs, found, expected, strict=True):
            if other is None:
                continue
            assert one.shape == other.shape, f"{name}: {one.shape} is not {other.shape}"
            finite = other[np.isfinite(other)]
            size = float(abs(finite).max()) if finite.size else 0.0
            np.testing.assert_allclose(one, other, 3e-5, 1e-5 * size + 1e-5, err_msg=name)
        return True


def require(*conditions: bool) -> None:
    """Says that an operator must refuse what does not meet all conditions."""
    if not all(conditions):
        raise AssertionError("what is wrong was not refused")


def integer(random: np.random.Generator, least: int, most: int) -> int:
    return int(random.integers(least, most, endpoint=True))


def flag(random: np.random.Generator) -> bool:
    return bool(random.integers(0, 2))


def weights(random: np.random.Generator, least_outputs: int = 1) -> Weights:
    inputs = int(random.choice([integer(random, 1, 300), 64, 128, 256]))
    outputs = int(random.choice([integer(random, least_outputs, 700), 64, 512]))
    bits = int(random.choice([4, 8]))
    return Weights(inputs, outputs, bits, transposed=bits == 8 and flag(random))


def weights_of(stored: Weights, inputs: Inputs, attributes: Attributes) -> Weights:
    """Returns the weights with the scales that are given; all else must be the case's own."""
    arrays = {"weight": stored.stored, "scale": stored.scale, "column_scale": stored.column_scale}
    for name, array in arrays.items():
        given = inputs[name]
        require((given is None) == (array is None))
        if array is not None:
            require(given.dtype == array.dtype, given.shape == array.shape)
            require(name != "weight" or np.array_equal(given, array))
    require(*(attributes[name] == value for name, value in stored.attributes.items()))
    other = replace(stored)
    for name in ("scale", "column_scale"):
        object.__setattr__(other, name, inputs[name])
    return other


def linear(random: np.random.Generator) -> Case:
    rows = tuple(integer(random, 0, 9) for _ in range(integer(random, 1, 3)))
    one = Linear(weights(random), rows, *(flag(random) for _ in range(4)))

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array]:
        relu = {0: False, 1: True}[attributes["relu"]]
        matrix = weights_of(one.weights, inputs, attributes)
        given = replace(one, weights=matrix, relu=relu).expected(**inputs)
        x, residual = inputs["x"], inputs["residual"]
        require(given.shape == (*x.shape[:-1], one.weights.outputs))
        require(residual is None or residual.shape == given.shape)  # numpy broadcasts
        return [given]

    attributes = {**one.weights.attributes, "relu": int(one.relu), "epsilon": operators.EPSILON}
    return Case("Linear", one.inputs(), attributes, expected, CONSTANTS)


def layer_norm(random: np.random.Generator) -> Case:
    shape = tuple(integer(random, 0, 6) for _ in range(integer(random, 0, 3)))
    width = integer(random, 1, 200)

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array]:
        x, weight, bias = (np.asarray(array, float) for array in inputs.values())
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + attributes["epsilon"])
        return [centred / spread * weight + bias]

    inputs = {
        "x": random.standard_normal((*shape, width), np.float32),
        "weight": random.standard_normal(width, np.float32),
        "bias": random.standard_normal(width, np.float32),
    }
    return Case("LayerNorm", inputs, {"epsilon": operators.EPSILON}, expected)


def rank(random: np.random.Generator) -> Case:
    stored = weights(random, 100)
    count = int(random.choice([1, integer(random, 1, 40), integer(random, 1, stored.outputs)]))
    one = Rank(stored, integer(random, 1, 20), count, flag(random), 1.25, flag(random))
    inputs = one.inputs()
    inputs["banned"] = inputs["banned"].reshape(-1, 2).astype(np.int64)

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array | None]:
        matrix = weights_of(stored, inputs, attributes)
        require(inputs["hidden_states"].ndim == 2)
        scores, tokens, seen_scores = replace(one, weights=matrix).expected(**inputs)
        both = set(map(tuple, inputs["seen"])) & set(map(tuple, inputs["banned"]))
        return [scores, tokens, None if both else seen_scores]

    outputs = ("scores", "tokens", "seen_scores")
    return Case("Rank", inputs, stored.attributes, expected, CONSTANTS, outputs)


def beam_attention(random: np.random.Generator) -> Case:
    sentences, beams = integer(random, 1, 4), int(random.choice([1, 2, 5, 20]))
    heads, size = integer(random, 1, 4), int(random.choice([8, 16, 64, integer(random, 1, 130)]))
    capacity = integer(random, 1, 40)
    count = int(random.choice([1, sentences * beams]))
    lengths = [integer(random, 0, capacity - 1) for _ in range(count)]
    one = Beams(sentences, beams, heads, size, lengths, capacity)
    if flag(random):
        one = one.halved()

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array]:
        require(attributes["num_heads"] == heads, inputs["beam_size"] == beams)
        other = one.copied()
        for name, array in inputs.items():
            require(array.dtype == one.inputs[name].dtype)
            require(array.shape == one.inputs[name].shape or name == "past_length")
            other.inputs[name] = array
        length = inputs["past_length"]
        require(length.ndim == 1, (length >= 0).all(), (length < capacity).all())
        other.lengths = np.broadcast_to(length, (sentences * beams,))
        table = other.inputs["cache_indirection"].reshape(sentences * beams, -1)
        for row, last in zip(table, other.lengths, strict=True):
            require((row[: last + 1] >= 0).all(), (row[: last + 1] < beams).all())
        return list(other.expected().values())

    return Case(
        "BeamAttention",
        one.inputs,
        {"num_heads": heads},
        expected,
        outputs=OUTPUTS["BeamAttention"],
        in_place={"present_key": "past_key", "present_value": "past_value"},
    )


def cross_attention(random: np.random.Generator) -> Case:
    sentences, beams, heads = (integer(random, 1, 4) for _ in range(3))
    size, length = integer(random, 1, 130), integer(random, 0, 50)
    inputs = cross(sentences, beams, heads, size, length)
    inputs["mask"] = random.integers(0, 2, (sentences, length))
    if flag(random):
        inputs |= {name: inputs[name].astype(np.float16) for name in ("key", "value")}

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array]:
        query, key, value, mask = (np.asarray(array) for array in inputs.values())
        require(key.ndim == 4, key.shape[1] == attributes["num_heads"], value.shape == key.shape)
        require(mask.shape == (key.shape[0], key.shape[2]))
        require(query.ndim == 3, query.shape[1:] == (1, key.shape[1] * key.shape[3]))
        group = len(query) // len(key) if len(key) else 0
        require(len(query) == group * len(key))
        split = query.reshape(len(key), group, key.shape[1], key.shape[3])
        return [attention(split, key, value, mask).reshape(query.shape)]

    return Case("CrossAttention", inputs, {"num_heads": heads}, expected)


def self_attention(random: np.random.Generator) -> Case:
    heads, size = integer(random, 1, 6), integer(random, 1, 100)
    inputs = self_inputs(integer(random, 0, 4), integer(random, 0, 40), heads, size)
    inputs["mask"] = random.integers(0, 2, inputs["mask"].shape)

    def expected(inputs: Inputs, attributes: Attributes) -> list[Array]:
        qkv, mask = (np.asarray(array) for array in inputs.values())
        heads = attributes["num_heads"]
        require(qkv.ndim == 3, mask.shape == qkv.shape[:2], heads > 0)
        parts = qkv.reshape(*qkv.shape[:2], 3, heads, qkv.shape[2] // 3 // heads)
        query, key, value = parts.transpose(2, 0, 1, 3, 4)
        found = attention(query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3), mask)
        return [found.reshape(*qkv.shape[:2], qkv.shape[2] // 3)]

    return Case("SelfAttention", inputs, {"num_heads": heads}, expected)


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "Linear": linear,
    "LayerNorm": layer_norm,
    "Rank": rank,
    "BeamAttention": beam_attention,
    "CrossAttention": cross_attention,
    "SelfAttention": self_attention,
}


def other_shape(random: np.random.Generator, array: Array) -> Array:
    """Returns an array with an axis more, less, longer, shorter, empty or split in two."""
    shape = list(array.shape)
    axis = integer(random, 0, max(len(shape) - 1, 0))
    kinds = ["more", "less", "longer", "shorter", "empty", "swapped"] if shape else ["more"]
    kind = random.choice(kinds)
    if kind == "more":
        shape.insert(axis, int(random.choice([0, 1, 2])))
    elif kind == "less":
        del shape[axis]
    elif kind == "swapped":
        shape.reverse()
    else:
        size = shape[axis]
        grown = {"longer": size + integer(random, 1, 3), "shorter": max(size - 1, 0), "empty": 0}
        shape[axis] = grown[kind]
    return np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)


def other_value(random: np.random.Generator, array: Array) -> Array:
    """Returns a copy with one number that is as strange as its type allows."""
    array = array.copy()
    if array.dtype == bool:
        return np.array(~array)
    if not array.size:
        return array
    cell = tuple(integer(random, 0, size - 1) for size in array.shape)
    if array.dtype.kind == "f":
        array[cell] = random.choice([0.0, -0.0, 1e-40, 6e4, -6e4])
    else:
        bounds = np.iinfo(array.dtype)
        array[cell] = min(max(int(random.choice(np.array(NUMBERS))), bounds.min), bounds.max)
    return array


def changed(random: np.random.Generator, case: Case) -> Case:
    """Returns the case with one thing changed, which mostly makes it wrong."""
    name = str(random.choice(list(case.inputs)))
    array = case.inputs[name]
    kind = str(random.choice(["shape", "shape", "dtype", "value", "value", "gone", "attribute"]))
    if kind == "attribute":
        name = str(random.choice(["version", *case.attributes]))
        value = random.choice(np.array([*NUMBERS, 4, 8], dtype=object))
        if name == "epsilon":
            # Of a linear layer numpy knows one alone.
            value = operators.EPSILON if case.op == "Linear" else float(random.choice([0.0, 0.5]))
        value = None if random.random() < 0.1 else value
        return replace(
            case,
            attributes={**case.attributes, name: value},
            changed=f"attribute {name} is {value}",
        )
    if kind == "value" and name == "weight":
        kind = "dtype"  # numpy reads the case's own numbers
    if kind == "gone" or array is None:
        return replace(case, inputs={**case.inputs, name: None}, changed=f"{name} is left out")
    change = {
        "shape": other_shape,
        "dtype": lambda random, array: array.astype(random.choice(DTYPES)),
        "value": other_value,
    }[kind]
    with np.errstate(all="ignore"):
        array = change(random, array)
    text = f"{kind} of {name}: {array.dtype}{array.shape}"
    return replace(case, inputs={**case.inputs, name: array}, changed=text)


def main(op: str, first: int, last: int) -> None:
    """Runs cases, and prints how many gave results; ends with the first that is wrong."""
    ort.set_default_logger_severity(4)
    results = 0
    for number in range(first, last):
        random = np.random.default_rng([list(CASES).index(op), number])
        case = CASES[op](random)
        if number % 3:
            case = changed(random, case)
        print(f"{op} {number}: {case.changed}", file=sys.stderr, flush=True)
        try:
            results += case.check(threads=integer(random, 1, 3))
        except Exception:
            traceback.print_exc()
            sys.exit(1)
    print(results, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
