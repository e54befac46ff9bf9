"""The weights file: its parameters, their layout and their offsets.

All graphs refer to this one file, so each number is stored once. Knows how transformers' parameters
become ours (transposed for `MatMul`, with queries, keys and values side by side) and streams them
to disk. Refuses to know nodes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.positions import count_positions, sinusoidal_positions
from m2m100_onnx_export.quantize import pack_int4, quantize_blocks, quantize_columns

__all__ = ["StoredTensor", "WeightsFile", "write_weights"]

# The types of quantized matrices: first those of the layers, then the embedding and the LM head.
# Other parameters stay float32.
_QUANTIZED: dict[Precision, tuple[str, str]] = {
    "int8": ("int8", "int8"),
    "int4": ("int4", "int4"),
    "int4-int8": ("int4", "int8"),
}
_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}
# The runtime maps large tensors from the file, so they start on a page.
_PAGE = 4096
_ALIGNMENT = 64
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class StoredTensor:
    """The place of a parameter in the weights file.

    Attributes:
        shape: its shape in the file.
        dtype: its element type in the file: `float32`, `float16`, `int8` or `int4` (two a byte).
        offset: its first byte.
        length: its size in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    length: int


@dataclass(frozen=True)
class WeightsFile:
    """A written weights file: its tensors by name, and its size and hash."""

    tensors: dict[str, StoredTensor]
    record: FileRecord


@dataclass(frozen=True)
class _Parameter:
    """A parameter to write.

    Attributes:
        name: its name in the graphs.
        shape: its shape as `chunks` reads it.
        chunks: reads it, some rows at a time.
        matrix: whether activations are multiplied by it, so that it can be quantized.
        transposed: whether it is read as `(out, in)`. So is an embedding, whose rows the graphs
            gather. It is also stored so, except in four bits.
    """

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[torch.Tensor]]
    matrix: bool = False
    transposed: bool = False


def write_weights(checkpoint: Checkpoint, path: Path, precision: Precision) -> WeightsFile:
    """Streams every parameter to `path` with one tensor in memory at a time.

    Raises:
        BundleError: a tensor is missing, is not known or has another shape than config.json says,
            or a value is not finite in the precision.
        OSError: the disk is full or cannot be written.
    """
    tensors: dict[str, StoredTensor] = {}
    parameters = _in_file_order(_parameters(checkpoint))
    checkpoint.check_all_read()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for parameter in parameters:
            for name, shape, dtype, pieces in _encode(parameter, precision, checkpoint):
                large = math.prod(shape) * _BITS[dtype] // 8 >= _PAGE
                _put(file, digest, b"\0" * (-file.tell() % (_PAGE if large else _ALIGNMENT)))
                start = file.tell()
                for piece in pieces:
                    _put(file, digest, piece.data.cast("B"))
                tensors[name] = StoredTensor(shape, dtype, start, file.tell() - start)
        size = file.tell()
    return WeightsFile(tensors, FileRecord(size, digest.hexdigest()))


def _put(file: BinaryIO, digest: hashlib._Hash, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)


_Encoded = tuple[str, tuple[int, ...], str, Iterator[npt.NDArray[np.generic]]]


def _encode(
    parameter: _Parameter, precision: Precision, checkpoint: Checkpoint
) -> Iterator[_Encoded]:
    """Yields the tensors that store a parameter: name, shape, type and contents of each."""
    kind = torch.float16 if precision == "fp16" else torch.float32
    not_finite = BundleError(
        f"{checkpoint.directory}: parameter {parameter.name!r} has values that are not finite in "
        f"{precision}; export with --precision fp32, or check the checkpoint"
    )

    def checked() -> Iterator[torch.Tensor]:
        for chunk in parameter.chunks():
            cast = chunk.to(kind)
            if not torch.isfinite(cast).all():
                raise not_finite
            yield cast

    if precision not in _QUANTIZED or not parameter.matrix:
        chunks = (chunk.contiguous().numpy() for chunk in checked())
        yield parameter.name, parameter.shape, str(kind).removeprefix("torch."), chunks
        return
    dtype = _QUANTIZED[precision][parameter.transposed]
    quantize = quantize_blocks if dtype == "int4" else quantize_columns
    # MatMulNBits, which multiplies four bits, takes (in, out) only.
    turned = parameter.transposed and dtype == "int4"
    values = np.empty(parameter.shape[::-1] if turned else parameter.shape, np.int8)
    columns = values.T if parameter.transposed and not turned else values
    parts, done = [], 0
    for chunk in checked():
        block, scale = quantize(chunk.t() if parameter.transposed else chunk)
        columns[:, done : done + block.shape[1]] = block
        parts.append(scale)
        done += block.shape[1]
    scales = np.ascontiguousarray(np.concatenate(parts, axis=-1))
    if not np.isfinite(scales).all():
        raise not_finite
    pieces = _packed(values) if dtype == "int4" else iter([values])
    yield parameter.name, values.shape, dtype, pieces
    scale_name = f"{parameter.name.removesuffix('.weight')}.scale"
    yield scale_name, scales.shape, str(scales.dtype), iter([scales])


def _packed(values: npt.NDArray[np.int8]) -> Iterator[npt.NDArray[np.uint8]]:
    # An even number of rows ends on a whole byte.
    for start in range(0, len(values), 64):
        yield pack_int4(values[start : start + 64])


def _in_file_order(parameters: list[_Parameter]) -> list[_Parameter]:
    """Puts matrices before vectors: they fill whole pages, so alignment costs next to nothing."""
    return sorted(parameters, key=lambda p: len(p.shape) == 1)


def _parameters(checkpoint: Checkpoint) -> list[_Parameter]:
    """Returns every parameter of the model.

    A linear layer `name` becomes `name.weight`, `(in, out)` as `MatMul` takes it, and `name.bias`.
    Layers that read the same input become one: `self_attn.qkv`, `encoder_attn.kv`.
    """
    config = checkpoint.config
    checkpoint.check_shared_embedding()
    embeddings = checkpoint.embeddings()
    found = [
        _embedding(checkpoint, "shared.weight", embeddings["encoder"]),
        _Parameter(
            "positions.weight",
            (count_positions(config), config.d_model),
            lambda: iter([sinusoidal_positions(config)]),
        ),
    ]
    if embeddings["head"] != embeddings["encoder"]:
        found.append(_embedding(checkpoint, "lm_head.weight", embeddings["head"]))
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        ffn = config.encoder_ffn_dim if side == "encoder" else config.decoder_ffn_dim
        for index in range(layers):
            found += _layer(checkpoint, f"{side}.layers.{index}", ffn)
        found += _norm(checkpoint, f"{side}.layer_norm")
    return found


def _layer(checkpoint: Checkpoint, layer: str, ffn: int) -> list[_Parameter]:
    width = checkpoint.config.d_model
    attention = f"{layer}.self_attn"
    found = _linear(checkpoint, attention, "qkv", ("q_proj", "k_proj", "v_proj"), width, width)
    found += _linear(checkpoint, attention, "out_proj", ("out_proj",), width, width)
    norms = ["self_attn_layer_norm", "final_layer_norm"]
    if layer.startswith("decoder"):
        attention = f"{layer}.encoder_attn"
        found += _linear(checkpoint, attention, "q_proj", ("q_proj",), width, width)
        found += _linear(checkpoint, attention, "kv", ("k_proj", "v_proj"), width, width)
        found += _linear(checkpoint, attention, "out_proj", ("out_proj",), width, width)
        norms.append("encoder_attn_layer_norm")
    found += _linear(checkpoint, layer, "fc1", ("fc1",), width, ffn)
    found += _linear(checkpoint, layer, "fc2", ("fc2",), ffn, width)
    for norm in norms:
        found += _norm(checkpoint, f"{layer}.{norm}")
    return found


def _linear(
    checkpoint: Checkpoint, scope: str, name: str, parts: tuple[str, ...], rows: int, columns: int
) -> list[_Parameter]:
    """Joins the checkpoint's `parts` to one linear layer, `rows` to `len(parts) * columns`."""
    sources = [f"model.{scope}.{part}" for part in parts]
    for source in sources:
        _check(checkpoint, f"{source}.weight", (columns, rows))
        _check(checkpoint, f"{source}.bias", (columns,))

    def weight() -> Iterator[torch.Tensor]:
        yield torch.cat([checkpoint.rows(f"{s}.weight") for s in sources]).t()

    def bias() -> Iterator[torch.Tensor]:
        yield torch.cat([checkpoint.rows(f"{s}.bias") for s in sources])

    total = len(parts) * columns
    return [
        _Parameter(f"{scope}.{name}.weight", (rows, total), weight, matrix=True),
        _Parameter(f"{scope}.{name}.bias", (total,), bias),
    ]


def _norm(checkpoint: Checkpoint, name: str) -> list[_Parameter]:
    shape = (checkpoint.config.d_model,)
    return [
        _stored(checkpoint, f"{name}.{kind}", f"model.{name}.{kind}", shape)
        for kind in ("weight", "bias")
    ]


def _embedding(checkpoint: Checkpoint, name: str, source: str) -> _Parameter:
    config = checkpoint.config
    stored = _stored(checkpoint, name, source, (config.vocab_size, config.d_model))
    return replace(stored, matrix=True, transposed=True)


def _stored(checkpoint: Checkpoint, name: str, source: str, shape: tuple[int, ...]) -> _Parameter:
    """Returns a parameter in the checkpoint's layout, which is read in chunks of rows."""
    _check(checkpoint, source, shape)

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, shape[0], _ROWS_AT_ONCE):
            yield checkpoint.rows(source, start, min(start + _ROWS_AT_ONCE, shape[0]))

    return _Parameter(name, shape, chunks)


def _check(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    found = checkpoint.shape(name)
    if found != shape:
        raise BundleError(
            f"{checkpoint.directory}: tensor {name!r}: expected shape {shape} by config.json, "
            f"found {found}"
        )
