"""Cases of the operators Linear, LayerNorm and Rank, in numpy and through onnxruntime.

Numpy's sums of eight-bit products are those of integers, and its float steps those that the
operators promise. So what involves no logarithm is equal to the last bit. As a program it writes
what all cases give into the file that is named.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
INSTRUCTIONS = ("avx2", "avxvnni", "avx512", "amx", "neon", "i8mm")
BLOCK = 32
"""Inputs that share a scale in four bits."""
MOST_MULTIPLE = 15
"""Of a column's scale, that the scale of a block is."""
EPSILON = 1e-5


def run_operator(
    op: str,
    inputs: Mapping[str, Array | None],
    attributes: Mapping[str, Any],
    outputs: tuple[str, ...] = ("y",),
    *,
    constants: frozenset[str] = frozenset(),
    in_place: Mapping[str, str] | None = None,
    threads: int = 1,
) -> list[Array]:
    """Runs one node, whose inputs may have any shape; None is an input that is left out.

    Args:
        op: the operator's name.
        inputs: by name, in the node's order.
        attributes: of the node; None is left out.
        outputs: their names, in the node's order.
        constants: the inputs that belong to the graph.
        in_place: outputs that are bound to the buffer of an input.
        threads: of the session.
    """
    from m2m100_onnx_kernels import library_path

    def value(name: str, array: Array) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [f"{name}_{axis}" for axis in range(array.ndim)]
        return helper.make_tensor_value_info(name, kind, shape)

    given = {name: array for name, array in inputs.items() if array is not None}
    node = helper.make_node(
        op,
        [name if name in given else "" for name in inputs],
        outputs,
        domain="m2m100",
        **{"version": 1, **attributes},
    )
    in_place = {name: of for name, of in (in_place or {}).items() if of in given}
    kinds = {"tokens": np.dtype(np.int64)} | {n: given[of].dtype for n, of in in_place.items()}
    graph = helper.make_graph(
        [node],
        op,
        [value(name, array) for name, array in given.items() if name not in constants],
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(kinds.get(name, np.dtype(np.float32))), None
            )
            for name in outputs
        ],
        [
            numpy_helper.from_array(array, name)
            for name, array in given.items()
            if name in constants
        ],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("m2m100", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    # Buffers of their own, so that AddressSanitizer sees their ends.
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    # A binding keeps no reference to what it binds.
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in given.items()
        if name not in constants
    }
    for name, bound in values.items():
        binding.bind_ortvalue_input(name, bound)
    for name in outputs:
        if name in in_place:
            binding.bind_ortvalue_output(name, values[in_place[name]])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    # Copies, because the memory is that of the session.
    return [np.array(one.numpy()) for one in binding.get_outputs()]


@dataclass(frozen=True)
class Weights:
    """A random matrix `(K, N)` of whole numbers with its scales, and how it lies in a file."""

    inputs: int
    outputs: int
    bits: int = 8
    transposed: bool = False
    numbers: Array = field(init=False, repr=False)
    scale: Array = field(init=False, repr=False)
    column_scale: Array | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.inputs * 20000 + self.outputs)
        least, most = (-127, 127) if self.bits == 8 else (-8, 7)
        shape = self.inputs, self.outputs
        numbers = random.integers(least, most, shape, np.int8, endpoint=True)
        numbers[:1] = least  # the ends of the range are there, in one column at every input
        numbers[:, :1] = most
        scale = random.uniform(1e-3, 2e-2, self.outputs).astype(np.float32)
        column_scale = None
        if self.bits == 4:  # Multiples of the columns' scales, which half precision has exactly.
            column_scale = (np.ceil(scale * 2**12) / 2**16).astype(np.float32)
            blocks = -(-self.inputs // BLOCK)
            multiples = random.integers(-MOST_MULTIPLE, MOST_MULTIPLE + 1, (blocks, self.outputs))
            multiples[:, 0] = MOST_MULTIPLE
            scale = (multiples * column_scale).astype(np.float16)
        for name, value in (("numbers", numbers), ("scale", scale), ("column_scale", column_scale)):
            object.__setattr__(self, name, value)

    @property
    def stored(self) -> Array:
        if self.bits == 8:
            return np.ascontiguousarray(self.numbers.T if self.transposed else self.numbers)
        halves = (self.numbers.reshape(-1) & 15).astype(np.uint8)
        halves = np.pad(halves, (0, len(halves) % 2))
        packed: Array = halves[::2] | halves[1::2] << 4
        return packed

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "in_features": self.inputs,
            "out_features": self.outputs,
            "bits": self.bits,
            "transposed": int(self.transposed),
        }

    @property
    def eight_bits(self) -> Array:
        """The numbers times the multiples of their blocks, whatever a file has for scales."""
        if self.column_scale is None:
            return self.numbers
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = np.float32(1) / self.column_scale
            inverse[~np.isfinite(inverse)] = 0
            ratio = self.scale.astype(np.float32) * inverse
        ratio = np.nan_to_num(ratio, nan=-MOST_MULTIPLE, posinf=99, neginf=-99)
        multiples = np.rint(np.clip(ratio, -MOST_MULTIPLE, MOST_MULTIPLE)).astype(np.int64)
        every: Array = np.repeat(multiples, BLOCK, axis=0)[: self.inputs]
        return self.numbers * every

    def product(self, x: Array, steps: int = 127) -> Array:
        """Returns rows, rounded to eight bits, times the matrix; every row is finite.

        Args:
            x: the rows.
            steps: those from 0 to the largest magnitude: 254 where no number is negative.
        """
        top = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32)
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.where(top > 0, np.float32(steps) / top, 0).astype(np.float32)
        factor[factor > 3e38] = 0
        rounded = np.rint(x * factor).astype(np.int64)
        step = top / np.float32(steps)
        # Sums below 2^53 are exact in double precision, which numpy multiplies faster.
        sums = rounded.astype(float) @ self.eight_bits.astype(float)
        scale = self.scale if self.column_scale is None else self.column_scale
        product: Array = sums.astype(np.float32) * step * scale
        return product


@dataclass(frozen=True)
class Linear:
    """Random inputs of a linear layer, and the same in numpy."""

    weights: Weights
    rows: tuple[int, ...] = (5,)
    bias: bool = True
    residual: bool = False
    norm: bool = False
    relu: bool = False

    def inputs(self) -> dict[str, Array | None]:
        random = np.random.default_rng(self.rows[-1])
        width, outputs = self.weights.inputs, self.weights.outputs

        def reals(*shape: int) -> Array:
            return random.standard_normal(shape, np.float32)

        return {
            "x": reals(*self.rows, width) * 3,
            "weight": self.weights.stored,
            "scale": self.weights.scale,
            "bias": reals(outputs) if self.bias else None,
            "residual": reals(*self.rows, outputs) if self.residual else None,
            "norm_weight": reals(width) if self.norm else None,
            "norm_bias": reals(width) if self.norm else None,
            "column_scale": self.weights.column_scale,
        }

    def run(self, *, threads: int = 1, **changed: Array | None) -> Array:
        return run_linear(
            {**self.inputs(), **changed},
            {**self.weights.attributes, "relu": int(self.relu)},
            threads=threads,
        )

    def expected(self, **changed: Array | None) -> Array:
        """Returns the output; the rows' layer norm is the operator's own."""
        inputs = {**self.inputs(), **changed}
        x, bias, residual = (inputs[name] for name in ("x", "bias", "residual"))
        assert x is not None
        if inputs["norm_weight"] is not None:
            x = layer_norm(x, inputs["norm_weight"], inputs["norm_bias"])
        y = self.weights.product(np.maximum(x, 0), 254) if self.relu else self.weights.product(x)
        for more in (bias, residual):
            y = y if more is None else y + more
        return y


CONSTANTS = frozenset({"weight", "scale", "bias", "norm_weight", "norm_bias", "column_scale"})


def run_linear(
    inputs: Mapping[str, Array | None], attributes: Mapping[str, Any], *, threads: int = 1
) -> Array:
    facts = {"relu": 0, "epsilon": EPSILON, **attributes}
    return run_operator("Linear", inputs, facts, constants=CONSTANTS, threads=threads)[0]


def layer_norm(x: Array, weight: Array | None, bias: Array | None) -> Array:
    """Returns what the operator gives."""
    inputs = {"x": x, "weight": weight, "bias": bias}
    return run_operator("LayerNorm", inputs, {"epsilon": EPSILON})[0]


@dataclass(frozen=True)
class Rank:
    """Random inputs of the LM head's ranking, and the same in numpy."""

    weights: Weights
    rows: int = 5
    count: int = 12
    bias: bool = False
    penalty: float = 1.0
    renormalized: bool = True

    def inputs(self) -> dict[str, Array | None]:
        random = np.random.default_rng(self.rows)
        vocabulary = self.weights.outputs
        cells = [
            np.stack([random.integers(0, self.rows, n), random.integers(0, vocabulary, n)], axis=1)
            for n in (3 * self.rows, 4 * self.rows)
        ]
        seen, banned = cells
        seen[-1] = seen[0]  # a token that is there twice counts once
        banned[-1] = banned[0]
        both = {tuple(cell) for cell in seen.tolist()}
        return {
            "hidden_states": random.standard_normal((self.rows, self.weights.inputs), np.float32),
            "weight": self.weights.stored,
            "scale": self.weights.scale,
            "bias": random.standard_normal(vocabulary, np.float32) if self.bias else None,
            "count": np.array([self.count]),
            "repetition_penalty": np.array(self.penalty, np.float32),
            "seen": seen,
            "banned": np.array([cell for cell in banned.tolist() if tuple(cell) not in both]),
            "renormalized": np.array(self.renormalized),
            "column_scale": self.weights.column_scale,
        }

    def run(self, *, threads: int = 1, **changed: Array | None) -> list[Array]:
        return run_operator(
            "Rank",
            {**self.inputs(), **changed},
            self.weights.attributes,
            ("scores", "tokens", "seen_scores"),
            constants=CONSTANTS,
            threads=threads,
        )

    def expected(self, **changed: Array | None) -> list[Array]:
        """Returns scores, tokens and scores of the cells seen."""
        given = {**self.inputs(), **changed}
        inputs = {name: array for name, array in given.items() if array is not None}
        logits = self.weights.product(inputs["hidden_states"])
        if "bias" in inputs:
            logits = logits + inputs["bias"]
        seen, banned = (tuple(inputs[name].reshape(-1, 2).T) for name in ("seen", "banned"))
        if inputs["renormalized"]:
            old, penalty = logits[seen], inputs["repetition_penalty"]
            logits[seen] = np.where(old < 0, old * penalty, old / penalty)
            logits[banned] = -np.inf
        exact = logits.astype(float)
        top = exact.max(axis=1, keepdims=True)
        total = top + np.log(np.exp(exact - top).sum(axis=1, keepdims=True))
        # A stable sort leaves the lower of two equal tokens first.
        tokens = np.argsort(-logits, axis=1, kind="stable")[:, : int(inputs["count"][0])]
        scores = exact - total
        return [np.take_along_axis(scores, tokens, axis=1), tokens, scores[seen]]


DEMO = Weights(130, 10609, transposed=True)
"""The demo's vocabulary."""
LINEAR = {
    **{
        f"{rows}_rows_{inputs}x{outputs}_{bits}_bits": Linear(
            Weights(inputs, outputs, bits), (rows,), residual=rows == 5, relu=inputs == 130
        )
        for rows in (1, 5, 13)
        for inputs, outputs in ((100, 77), (130, 640), (256, 64), (1, 1), (1024, 130))
        for bits in (8, 4)
    },
    "no_bias": Linear(Weights(96, 200), bias=False),
    "no_bias_but_a_residual": Linear(Weights(96, 200, 4), bias=False, residual=True),
    "norm": Linear(Weights(100, 192), (2, 3), norm=True),
    "norm_of_four_bits": Linear(Weights(128, 77, 4), (13,), norm=True, residual=True),
    "transposed": Linear(Weights(130, 77, transposed=True), (9,)),
    "transposed_few": Linear(Weights(128, 77, transposed=True), (3,)),
    "vocabulary": Linear(DEMO, (13,), bias=False),
    "vocabulary_of_four_bits": Linear(Weights(130, 10609, 4), (5,)),
    "many_rows": Linear(Weights(130, 77), (3, 100), residual=True),
    "more_rows_than_share_a_block": Linear(Weights(64, 77, 4), (300,)),
}
RANK = {
    "one_row": Rank(DEMO, 1, 1),
    "beams": Rank(DEMO, 5, 12, penalty=1.3),
    "penalty_below_one": Rank(DEMO, 5, 12, penalty=0.7),
    "later_amended": Rank(DEMO, 13, 40, penalty=1.3, renormalized=False),
    "bias": Rank(Weights(128, 10609, transposed=True), 5, 12, bias=True),
    "four_bits": Rank(Weights(130, 10609, 4), 5, 12),
    "four_bits_of_few_tokens": Rank(Weights(100, 77, 4), 13, 77),
    "more_candidates_than_a_chunk": Rank(DEMO, 3, 700),
    "all_tokens": Rank(DEMO, 2, 10609, penalty=1.3),
    "few_tokens": Rank(Weights(64, 9, transposed=True), 2, 9),
}


def outputs_of_all() -> dict[str, Array]:
    """Returns every case's output on the instruction set of this process."""
    outputs = {f"linear_{name}": case.run() for name, case in LINEAR.items()}
    for name, case in RANK.items():
        for part, array in zip(("scores", "tokens", "seen"), case.run(), strict=True):
            outputs[f"rank_{name}_{part}"] = array
    return outputs


def outputs_on(instructions: str, program: str, path: Path) -> dict[str, Array] | None:
    """Returns what a program writes with an instruction set; None if the processor has it not."""
    done = subprocess.run(
        [sys.executable, program, str(path)],
        env={**os.environ, "M2M100_KERNELS": instructions, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        assert "M2M100_KERNELS: expected one that" in done.stderr, done.stderr
        return None
    with np.load(path) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    np.savez(sys.argv[1], **outputs_of_all())
