"""Collects the nodes of a graph, and writes each kind of layer in each precision.

A precision changes the matrix products of a graph and nothing else. Refuses to know the
architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from m2m100_onnx.bundle.graphs import FOUR_BITS, Precision, Signature, TensorSpec
from m2m100_onnx_export.quantize import INT4_BLOCK, INT8_MAX
from m2m100_onnx_export.weights import WeightsFile

__all__ = [
    "FUSED_DOMAIN",
    "LAYER_NORM_EPSILON",
    "GraphBuilder",
    "StoredMatrix",
    "build_gather",
    "opset_of",
]

LAYER_NORM_EPSILON = 1e-5
"""PyTorch's default."""
FUSED_DOMAIN = "com.microsoft"
"""The domain of onnxruntime's own operators, which only fused graphs use."""

_OPSET = 18
# The first opset whose DequantizeLinear takes four bits and a scale for each block.
_OPSET_INT4 = 21
# The oldest IR version that has each opset: older runtimes refuse a newer one.
_IR_VERSION = {_OPSET: 8, _OPSET_INT4: 10}
_ELEMENT = {
    "bool": TensorProto.BOOL,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def opset_of(precision: Precision) -> int:
    """Returns the oldest ai.onnx operator set that has a precision's matrix products."""
    return _OPSET_INT4 if precision in FOUR_BITS else _OPSET


class StoredMatrix(NamedTuple):
    """A quantized matrix: its tensor in the graph, and how it lies in the weights file."""

    tensor: str
    rows: int
    columns: int
    bits: int


class GraphBuilder:
    """Collects nodes and the parameters that they use; has a method for each kind of layer.

    Attributes:
        precision: the weights' precision.
        fused: whether the graph may use onnxruntime's own operators.
        real: the type of activations.
    """

    def __init__(
        self, weights: WeightsFile, precision: Precision, location: str, *, fused: bool = False
    ) -> None:
        self.precision = precision
        self.fused = fused
        self.real = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._weights = weights
        self._location = location
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._scope = ""
        self._taken: dict[str, int] = {}

    def enter(self, scope: str) -> None:
        """Sets the part of the model that names the nodes added from now on."""
        self._scope = scope

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        """Adds a node with one output and returns the output's name."""
        return self.ops(kind, *inputs, outputs=[name], **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: list[str | None], **attributes: object
    ) -> list[str]:
        """Adds a node and returns its outputs' names, made from scope and kind where None.

        An output whose name is empty is left out.
        """
        stem = f"/{self._scope}/{kind}"
        number = self._taken[stem] = self._taken.get(stem, -1) + 1
        node = f"{stem}_{number}" if number else stem
        made = (f"{node}_output_{i}" for i in range(len(outputs)))
        names = [n if given is None else given for given, n in zip(outputs, made, strict=True)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, node, **attributes))
        return names

    def ints(self, *values: int) -> str:
        """Adds a constant int64 vector."""
        return self._constant(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Adds a constant int64 scalar."""
        return self._constant(f"int_{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        """Adds a constant scalar of the graph's float type."""
        return self._constant(f"float_{value!r}", np.array(value, self.real))

    def float32(self, value: float) -> str:
        """Adds a constant float32 scalar, whatever the graph's float type."""
        return self._constant(f"float32_{value!r}", np.array(value, np.float32))

    def _constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def parameter(self, name: str) -> str:
        """Adds a parameter of the weights file."""
        stored = self._weights.tensors[name]
        return self._external(name, name, stored.dtype, stored.shape)

    def _external(self, name: str, source: str, dtype: str, shape: tuple[int, ...]) -> str:
        """Adds a tensor of the given type and shape over the bytes of parameter `source`."""
        if name not in self._initializers:
            stored = self._weights.tensors[source]
            tensor = TensorProto(name=name, data_type=_ELEMENT[dtype], dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self._location, "offset": stored.offset, "length": stored.length}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def stored_matrix(self, name: str) -> StoredMatrix:
        """Adds a quantized matrix for operators that read it as it lies; four bits as bytes."""
        stored = self._weights.tensors[name]
        rows, columns = stored.shape
        if stored.dtype == "int4":
            return StoredMatrix(self._bytes_of(name), rows, columns, 4)
        return StoredMatrix(self.parameter(name), rows, columns, 8)

    def _bytes_of(self, name: str) -> str:
        """Adds the bytes of a matrix of four bits, since few operators take such elements."""
        length = self._weights.tensors[name].length
        return self._external(f"{name}.bytes", name, "uint8", (length,))

    def has(self, name: str) -> bool:
        """Says whether the weights file has a parameter."""
        return name in self._weights.tensors

    def linear(self, x: str, name: str, *, relu: bool = False) -> str:
        """Adds `x @ weight + bias`, or `relu(x) @ weight + bias`."""
        return self.op("Add", self.product(x, name, relu=relu), self.parameter(f"{name}.bias"))

    def first_of(self, *names: str) -> str:
        """Returns the first name with a weight in the weights file; the last one is taken for it.

        Parts of a model have a table of their own, or read one that they share.
        """
        return next((n for n in names[:-1] if self.has(f"{n}.weight")), names[-1])

    def embedding_rows(self, ids: str, name: str = "shared") -> str:
        """Adds the unscaled token embeddings, `(rows, length, D)`, of `(rows, length)` ids."""
        stored = self._weights.tensors[f"{name}.weight"]
        if stored.dtype == "int4":
            return self._int4_columns(ids, name)
        rows = self.op("Gather", self.parameter(f"{name}.weight"), ids)
        if stored.dtype != "int8":
            return rows
        rows = self.op("Cast", rows, to=TensorProto.FLOAT)
        scale = self.op("Gather", self.parameter(f"{name}.scale"), ids)
        return self.op("Mul", rows, self.op("Unsqueeze", scale, self.ints(-1)))

    def _int4_columns(self, ids: str, name: str) -> str:
        """Adds the unpacking of embeddings from their bytes, since `Gather` takes no four bits.

        The matrix is `(D, V)`. The number in row d and column t is number `d * V + t` of the
        matrix, and its scale is number `d // block * V + t` of the scales. V need not be even, and
        D need not be a multiple of the block.
        """
        weight, scale = (self._weights.tensors[f"{name}.{part}"] for part in ("weight", "scale"))
        width, size = weight.shape
        first = np.arange(width, dtype=np.int64)
        column = self.op("Unsqueeze", ids, self.ints(-1))
        number = self.op("Add", column, self._constant("embedding_starts", first * size))
        two, sixteen = self.integer(2), self.integer(16)
        data = self._bytes_of(f"{name}.weight")
        pair = self.op("Gather", data, self.op("Div", number, two))
        pair = self.op("Cast", pair, to=TensorProto.INT64)
        # The even number is the lower half of the byte. Halves of eight and above are negative.
        odd = self.op("Cast", self.op("Mod", number, two), to=TensorProto.BOOL)
        half = self.op("Where", odd, self.op("Div", pair, sixteen), pair)
        eight = self.integer(8)
        signed = self.op("Sub", self.op("Mod", self.op("Add", half, eight), sixteen), eight)
        block = self._constant("embedding_scale_starts", first // INT4_BLOCK * size)
        flat = self._external(
            f"{name}.scales", f"{name}.scale", scale.dtype, (math.prod(scale.shape),)
        )
        steps = self.op("Gather", flat, self.op("Add", column, block))
        floats = [self.op("Cast", x, to=TensorProto.FLOAT) for x in (signed, steps)]
        return self.op("Mul", *floats)

    def embedding_product(self, x: str) -> str:
        """Adds `x @ embedding^T`, `(N, V)`, with the LM head's own matrix and bias if it has them.

        Args:
            x: `(N, D)`.
        """
        name = self.first_of("lm_head", "shared")
        bias = ["lm_head.bias"] if self.has("lm_head.bias") else []
        kind = self._weights.tensors[f"{name}.weight"].dtype
        if kind not in ("int4", "int8"):
            # `Gemm` reads the `(V, D)` matrix transposed, without a copy.
            operands = map(self.parameter, (f"{name}.weight", *bias))
            return self.op("Gemm", x, *operands, transB=1)
        if kind == "int4":
            logits = self.product(x, name)
        else:
            # onnxruntime computes this once, when it opens the graph.
            weight = self.op("Transpose", self.parameter(f"{name}.weight"), perm=[1, 0])
            logits = self._integer_product(x, weight, self.parameter(f"{name}.scale"))
        return self.op("Add", logits, self.parameter(*bias)) if bias else logits

    def product(self, x: str, name: str, *, relu: bool = False) -> str:
        """Adds `x @ weight` or `relu(x) @ weight`, for a weight stored as `(in, out)`."""
        weight = self.parameter(f"{name}.weight")
        kind = self._weights.tensors[f"{name}.weight"].dtype
        if kind == "int8":
            return self._integer_product(x, weight, self.parameter(f"{name}.scale"), relu=relu)
        if relu:
            x = self.op("Relu", x)
        if kind == "int4":
            # onnxruntime makes one MatMulNBits of the pair. It rounds `x` to eight bits block by
            # block, so no row depends on another. It casts constant scales at load.
            scale = self.op("Cast", self.parameter(f"{name}.scale"), to=TensorProto.FLOAT)
            weight = self.op("DequantizeLinear", weight, scale, axis=0, block_size=INT4_BLOCK)
        return self.op("MatMul", x, weight)

    def _integer_product(self, x: str, weight: str, scale: str, *, relu: bool = False) -> str:
        """Adds `x @ (weight * scale)` in integers, with a scale for each row of `x`.

        One scale for the whole tensor, as `DynamicQuantizeLinear` computes it, would make a
        translation depend on the sentences beside it. With few rows a node costs as much as its
        arithmetic, so this uses few nodes.
        """
        if relu:
            # Rounding to 0 ... 255 sets negative numbers to 0, which is the activation function.
            largest = self.op("ReduceMax", x, self.ints(-1), keepdims=1)
            largest = self.op("Max", largest, self.number(1e-30))
            middle, step = self._constant("uint8_0", np.array(0, np.uint8)), self.number(1 / 255)
        else:
            # A row of zeros becomes 0 / 0 and so any integer, which is multiplied by 0 later.
            largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
            middle = self._constant("uint8_128", np.array(128, np.uint8))
            step = self.number(1 / INT8_MAX)
        rounded = self.op("QuantizeLinear", self.op("Div", x, largest), step, middle)
        if self.fused:
            product = self.op(
                "MatMulIntegerToFloat", rounded, weight, step, scale, middle, domain=FUSED_DOMAIN
            )
            return self.op("Mul", product, largest)
        sums = self.op("MatMulInteger", rounded, weight, middle)
        scaled = self.op("Mul", self.op("Cast", sums, to=TensorProto.FLOAT), scale)
        return self.op("Mul", scaled, self.op("Mul", largest, step))

    def layer_norm(self, x: str, name: str, epsilon: float = LAYER_NORM_EPSILON) -> str:
        """Adds layer normalization over the last axis."""
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """Adds an `If`; the nodes that `then` and `otherwise` add become its branches."""
        branches = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            outer, self._nodes = self._nodes, []
            output = helper.make_empty_tensor_value_info(make())
            branches[name] = helper.make_graph(self._nodes, name, [], [output])
            self._nodes = outer
        return self.op("If", condition, **branches)

    def model(self, name: str, signature: Signature) -> onnx.ModelProto:
        """Returns the finished graph."""
        proto = helper.make_graph(
            self._nodes,
            name,
            [_value_info(spec) for spec in signature.inputs],
            [_value_info(spec) for spec in signature.outputs],
            list(self._initializers.values()),
        )
        return _finish(proto, opset_of(self.precision))


def _finish(proto: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    opsets = {"": opset} | {node.domain: 1 for node in proto.node if node.domain}
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()],
        ir_version=_IR_VERSION[opset],
        producer_name="m2m100-onnx",
    )


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _ELEMENT[spec.dtype], list(spec.shape))


def build_gather(precision: Precision) -> onnx.ModelProto:
    """Returns the graph of one node with which the runtime selects cache rows on a device.

    The runtime package contains its bytes, since the runtime cannot build graphs.
    """
    real = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    shape = ["rows", "heads", "length", "head_size"]
    proto = helper.make_graph(
        [helper.make_node("Gather", ["data", "rows"], ["gathered"], "Gather", axis=0)],
        "gather",
        [
            helper.make_tensor_value_info("data", real, shape),
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["selected"]),
        ],
        [helper.make_tensor_value_info("gathered", real, ["selected", *shape[1:]])],
    )
    return _finish(proto, _OPSET)
