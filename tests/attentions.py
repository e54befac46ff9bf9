"""Cases of the attention operators, and their runs through onnxruntime.

As a program it writes what all cases give into the file that is named.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

Array = npt.NDArray[Any]
INPUTS = {
    "BeamAttention": (
        *("qkv", "past_key", "past_value"),
        *("past_length", "beam_size", "cache_indirection"),
    ),
    "CrossAttention": ("query", "key", "value", "mask"),
    "SelfAttention": ("qkv", "mask"),
}
OUTPUTS = {"BeamAttention": ("attended", "present_key", "present_value")}
RANKS = {"past_length": 1, "beam_size": 1, "mask": 2, "past_key": 4, "past_value": 4}
RANKS |= {"key": 4, "value": 4}


def session(
    op: str, heads: int, *, threads: int = 1, version: int = 1, half: bool = False
) -> ort.InferenceSession:
    """Returns a session of one operator, whose inputs may have any shape.

    Args:
        op: the operator's name.
        heads: H.
        threads: of the session.
        version: of the operator.
        half: whether keys and values are of half precision.
    """
    from m2m100_onnx_kernels import library_path

    outputs = OUTPUTS.get(op, ("attended",))
    integers = {"past_length", "beam_size", "cache_indirection"}

    def value(name: str) -> Any:
        kind = TensorProto.INT32 if name in integers else TensorProto.FLOAT
        kind = TensorProto.INT64 if name == "mask" else kind
        kind = TensorProto.FLOAT16 if half and name.endswith(("key", "value")) else kind
        if name in outputs:
            return helper.make_tensor_value_info(name, kind, None)
        shape = [f"{name}_{axis}" for axis in range(RANKS.get(name, 3))]
        return helper.make_tensor_value_info(name, kind, shape)

    node = helper.make_node(
        op, INPUTS[op], outputs, domain="m2m100", num_heads=heads, version=version
    )
    graph = helper.make_graph(
        [node],
        op,
        [value(name) for name in INPUTS[op]],
        [value(name) for name in outputs],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("m2m100", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def attend(op: str, heads: int, inputs: Mapping[str, Array], *, threads: int = 1) -> Array:
    """Returns what the operator attends to; present keys and values are written over the past."""
    half = any(array.dtype == np.float16 for array in inputs.values())
    run = session(op, heads, threads=threads, half=half)
    binding = run.io_binding()
    # A binding keeps no reference to what it binds.
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past_") and name != "past_length":
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
    binding.bind_output("attended")
    run.run_with_iobinding(binding)
    for name in ("past_key", "past_value"):
        if name in inputs:
            inputs[name][...] = values[name].numpy()
    return binding.get_outputs()[-1 if op != "BeamAttention" else 2].numpy()


def softmax_sum(query: Array, keys: Array, values: Array) -> Array:
    """Returns one head's output in double precision."""
    scores = keys.astype(float) @ query.astype(float) / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights @ values.astype(float) / weights.sum()


def attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Returns `(B, T, H, E)` of such queries, and `(B, H, S, E)` keys and values in numpy."""
    out = np.zeros(query.shape)
    for b, t, h in np.ndindex(out.shape[:3]):
        real = mask[b] != 0
        if real.any():
            out[b, t, h] = softmax_sum(query[b, t, h], key[b, h, real], value[b, h, real])
    return out


class Beams:
    """Random inputs of BeamAttention, and the same in numpy."""

    def __init__(
        self, sentences: int, beams: int, heads: int, size: int, lengths: list[int], capacity: int
    ) -> None:
        random = np.random.default_rng(sentences * 1000 + beams * 100 + size)
        rows = sentences * beams
        self.heads, self.size, self.beams = heads, size, beams
        self.lengths = np.broadcast_to(np.array(lengths), (rows,))
        cache = (rows, heads, capacity, size)
        table = random.integers(0, beams, (sentences, beams, capacity), dtype=np.int32)
        table[:, :, : capacity // 2] = table[:, :1, : capacity // 2]  # a past that beams share
        flat = table.reshape(rows, capacity)
        for row, length in enumerate(self.lengths):
            flat[row, length] = row % beams
            flat[row, length + 1 :] = 1 << 30  # not read
        self.inputs: dict[str, Array] = {
            "qkv": random.standard_normal((rows, 1, 3 * heads * size), np.float32),
            "past_key": random.standard_normal(cache, np.float32),
            "past_value": random.standard_normal(cache, np.float32),
            "past_length": np.array(lengths, np.int32),
            "beam_size": np.array([beams], np.int32),
            "cache_indirection": table,
        }

    def run(self, *, threads: int = 1) -> Array:
        return attend("BeamAttention", self.heads, self.inputs, threads=threads)

    def halved(self) -> Beams:
        """Returns the same with a past of half precision."""
        other = self.copied()
        for name in ("past_key", "past_value"):
            other.inputs[name] = other.inputs[name].astype(np.float16)
        return other

    def copied(self) -> Beams:
        other = object.__new__(Beams)
        other.__dict__ = {**self.__dict__, "inputs": {k: v.copy() for k, v in self.inputs.items()}}
        return other

    def expected(self) -> dict[str, Array]:
        """Returns the outputs in double precision, and the cache as it must be afterwards."""
        key, value = self.inputs["past_key"].copy(), self.inputs["past_value"].copy()
        rows, width = len(key), self.heads * self.size
        parts = self.inputs["qkv"].reshape(rows, 3, self.heads, self.size)
        for row, length in enumerate(self.lengths):
            key[row, :, length], value[row, :, length] = parts[row, 1], parts[row, 2]
        out = np.empty((rows, 1, width))
        table = self.inputs["cache_indirection"].reshape(rows, -1)
        for row, length in enumerate(self.lengths):
            past = np.arange(length + 1)
            places = row // self.beams * self.beams + table[row, : length + 1]
            for head in range(self.heads):
                cell = slice(head * self.size, (head + 1) * self.size)
                past_of = (c[places, head, past] for c in (key, value))
                out[row, 0, cell] = softmax_sum(parts[row, 0, head], *past_of)
        return {"attended": out, "past_key": key, "past_value": value}


def beams_of(name: str) -> Beams:
    """Returns a named case of BeamAttention."""
    arguments: dict[str, tuple[int, int, int, int, list[int], int]] = {
        "one_row": (1, 1, 2, 64, [0], 1),
        "greedy": (7, 1, 4, 64, [26], 64),
        "beams": (3, 5, 4, 64, [26], 64),
        "a_length_a_row": (2, 3, 4, 64, [0, 40, 15, 16, 3, 31], 48),
        "more_than_16_beams": (2, 20, 2, 64, [17], 32),
        "more_than_64_beams": (1, 70, 1, 16, [9], 10),
        "long": (1, 2, 2, 32, [1500], 2048),
        "many_heads": (5, 4, 16, 64, [33], 64),
        **{f"size_{e}": (2, 3, 3, e, [18], 20) for e in (1, 8, 16, 20, 48, 80, 112, 128, 144, 200)},
    }
    return Beams(*arguments[name])


BEAMS = (
    *("one_row", "greedy", "beams", "a_length_a_row", "more_than_16_beams", "more_than_64_beams"),
    *("long", "many_heads"),
    *(f"size_{e}" for e in (1, 8, 16, 20, 48, 80, 112, 128, 144, 200)),
)


def cross(sentences: int, beams: int, heads: int, size: int, length: int) -> dict[str, Array]:
    random = np.random.default_rng(length * 10 + beams)
    mask = np.ones((sentences, length), np.int64)
    for sentence in range(sentences):
        mask[sentence, length - 3 * sentence :] = 0
    shape = (sentences, heads, length, size)
    return {
        "query": random.standard_normal((sentences * beams, 1, heads * size), np.float32) * 2,
        "key": random.standard_normal(shape, np.float32),
        "value": random.standard_normal(shape, np.float32),
        "mask": mask,
    }


def halved(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the same with keys and values of half precision."""
    names = ("key", "value")
    return {k: v.astype(np.float16) if k in names else v for k, v in inputs.items()}


CROSS = {
    "beams": (3, 5, 4, 64, 21),
    "one_row": (1, 1, 2, 64, 1),
    "long": (2, 3, 2, 128, 300),
    "many_beams": (2, 33, 2, 48, 16),
    "tails": (2, 2, 3, 27, 40),
}


def self_inputs(sentences: int, length: int, heads: int, size: int) -> dict[str, Array]:
    random = np.random.default_rng(length)
    mask = np.ones((sentences, length), np.int64)
    for sentence in range(sentences):
        mask[sentence, length - 2 * sentence :] = 0
    shape = (sentences, length, 3 * heads * size)
    return {"qkv": random.standard_normal(shape, np.float32), "mask": mask}


SELF = {"sentences": (3, 23, 4, 64), "token": (1, 1, 2, 64), "tails": (2, 40, 3, 20)}
SELF |= {"long": (1, 200, 2, 32)}


def outputs_of_all() -> dict[str, Array]:
    """Returns every case's output on the instruction set of this process."""
    outputs = {}
    for name in BEAMS:
        case, half = beams_of(name), beams_of(name).halved()
        outputs |= {f"beam_{name}": case.run(), f"half_beam_{name}": half.run()}
        outputs[f"half_keys_{name}"] = half.inputs["past_key"]
    for name, sizes in CROSS.items():
        outputs[f"cross_{name}"] = attend("CrossAttention", sizes[2], cross(*sizes))
        outputs[f"half_cross_{name}"] = attend("CrossAttention", sizes[2], halved(cross(*sizes)))
    for name, sizes in SELF.items():
        outputs[f"self_{name}"] = attend("SelfAttention", sizes[2], self_inputs(*sizes))
    return outputs


if __name__ == "__main__":
    np.savez(sys.argv[1], **outputs_of_all())
