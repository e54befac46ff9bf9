"""The one weights file: which parameters it holds, in which layout, and where each one starts.

Knows how transformers' parameters become ours (transposed for `MatMul`, queries, keys and values
side by side) and how to stream them to disk; knows nothing of nodes. All graphs refer to this file,
so each number is stored once.
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

from m2m100_onnx.bundle import FileRecord, ModelConfig, Precision
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.quantize import pack_int4, quantize_blocks, quantize_columns

__all__ = ["StoredTensor", "WeightsFile", "sinusoidal_positions", "write_weights"]

# How matrices are stored where they are quantized: those of the layers, and the embedding with the
# LM head. Everything else stays float32 there.
_QUANTIZED: dict[Precision, tuple[str, str]] = {
    "int8": ("int8", "int8"),
    "int4": ("int4", "int4"),
    "int4-int8": ("int4", "int8"),
}
_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}
# Large tensors start on a page, so that the runtime can map them from the file.
_PAGE = 4096
_ALIGNMENT = 64
_ROWS_AT_ONCE = 8192
# Positions are counted from pad_token_id + 1, so the table starts with rows that no token has.
_POSITION_OFFSET = 2


@dataclass(frozen=True)
class StoredTensor:
    """Where a parameter lies in the weights file.

    Attributes:
        shape: its shape there.
        dtype: its element type: `float32`, `float16`, `int8` or `int4` (two a byte).
        offset: byte offset in the file.
        length: bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    length: int


@dataclass(frozen=True)
class WeightsFile:
    """The written file: its tensors by our names, and its size and hash."""

    tensors: dict[str, StoredTensor]
    record: FileRecord


@dataclass(frozen=True)
class _Parameter:
    """One of our parameters: its name, its shape and how to read it, in row chunks.

    A matrix that activations are multiplied by can be quantized. `transposed` says that it is read
    and, but for four bits, stored as `(out, in)`, as an embedding is: its rows are gathered too.
    """

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[torch.Tensor]]
    matrix: bool = False
    transposed: bool = False


def sinusoidal_positions(config: ModelConfig) -> torch.Tensor:
    """The `(max_position_embeddings + 2, d_model)` position table, bit for bit transformers'.

    Source: tensor2tensor's variant of section 3.5 of "Attention Is All You Need", as
    `M2M100SinusoidalPositionalEmbedding` computes it: sines in the first half of the columns,
    cosines in the second, the row of the padding token zero.
    """
    half = config.d_model // 2
    count = config.max_position_embeddings + _POSITION_OFFSET
    rate = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angle = torch.arange(count).float().unsqueeze(1) * rate.unsqueeze(0)
    table = torch.zeros(count, config.d_model)
    table[:, :half] = torch.sin(angle)
    table[:, half : 2 * half] = torch.cos(angle)
    table[config.pad_token_id] = 0
    return table


def write_weights(checkpoint: Checkpoint, path: Path, precision: Precision) -> WeightsFile:
    """Streams every parameter to `path`, one tensor in memory at a time.

    Raises:
        BundleError: a tensor is missing or of another shape than config.json says, or a value is
            too large for float16.
        OSError: the disk is full or cannot be written.
    """
    tensors: dict[str, StoredTensor] = {}
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for parameter in _in_file_order(_parameters(checkpoint)):
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
    """The tensors a parameter is stored as: their names, shapes, types and contents."""
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
    # Four bits are stored (in, out), for MatMulNBits takes no other layout.
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
    # An even number of rows ends on a whole byte, however long a row is.
    for start in range(0, len(values), 64):
        yield pack_int4(values[start : start + 64])


def _in_file_order(parameters: list[_Parameter]) -> list[_Parameter]:
    """Matrices before vectors: they fill whole pages, so that alignment costs next to nothing."""
    return sorted(parameters, key=lambda p: len(p.shape) == 1)


def _parameters(checkpoint: Checkpoint) -> list[_Parameter]:
    """Every parameter of the model, under our names.

    A linear layer `name` becomes `name.weight`, `(in, out)` as `MatMul` takes it, and `name.bias`.
    Layers that read the same input stand side by side in one: `self_attn.qkv`, `encoder_attn.kv`.
    """
    config = checkpoint.config
    embedding = checkpoint.shared_embedding()
    checkpoint.check_shared_embedding()
    found = [
        _embedding(checkpoint, "shared.weight", embedding),
        _Parameter(
            "positions.weight",
            (config.max_position_embeddings + _POSITION_OFFSET, config.d_model),
            lambda: iter([sinusoidal_positions(config)]),
        ),
    ]
    if untied := checkpoint.untied_lm_head():
        found.append(_embedding(checkpoint, "lm_head.weight", untied))
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
    """One linear layer `(rows) -> (len(parts) * columns)` made of the checkpoint's `parts`."""
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
    """A parameter stored as the checkpoint has it, read in chunks of rows."""
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
