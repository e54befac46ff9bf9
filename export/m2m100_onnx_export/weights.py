"""The weights file: its layout, its precisions and its offsets.

All graphs refer to this one file, so each number is stored once. Streams parameters to disk.
Refuses to know nodes, and which parameters a model has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.parameters import Parameter
from m2m100_onnx_export.quantize import pack_int4, quantize_blocks, quantize_columns
from m2m100_onnx_export.tensors import Tensors

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


def write_weights(
    parameters: list[Parameter], checkpoint: Tensors, path: Path, precision: Precision
) -> WeightsFile:
    """Streams parameters to `path` with one tensor in memory at a time.

    Args:
        parameters: the parameters of all graphs.
        checkpoint: the checkpoint that they read, which messages name.
        path: the file to write.
        precision: how matrices are stored.

    Raises:
        BundleError: a value is not finite in the precision, or a file of the checkpoint is damaged.
        OSError: the disk is full or cannot be written.
    """
    tensors: dict[str, StoredTensor] = {}
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for parameter in _in_file_order(parameters):
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


def _encode(parameter: Parameter, precision: Precision, checkpoint: Tensors) -> Iterator[_Encoded]:
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
    quantize: Callable[[torch.Tensor], tuple[npt.NDArray[Any], ...]]
    quantize = quantize_blocks if dtype == "int4" else quantize_columns
    # What the quantization returns beside the numbers.
    kinds = ("scale", "column_scale") if dtype == "int4" else ("scale",)
    # MatMulNBits, which multiplies four bits, takes (in, out) only.
    turned = parameter.transposed and dtype == "int4"
    values = np.empty(parameter.shape[::-1] if turned else parameter.shape, np.int8)
    columns = values.T if parameter.transposed and not turned else values
    parts: list[list[npt.NDArray[Any]]] = [[] for _ in kinds]
    done = 0
    for chunk in checked():
        quantized: tuple[npt.NDArray[Any], ...] = quantize(
            chunk.t() if parameter.transposed else chunk
        )
        block = quantized[0]
        columns[:, done : done + block.shape[1]] = block
        for all_of_kind, part in zip(parts, quantized[1:], strict=True):
            all_of_kind.append(part)
        done += block.shape[1]
    scales = [np.ascontiguousarray(np.concatenate(each, axis=-1)) for each in parts]
    if not all(np.isfinite(each).all() for each in scales):
        raise not_finite
    pieces = _packed(values) if dtype == "int4" else iter([values])
    yield parameter.name, values.shape, dtype, pieces
    for kind_of_scale, each in zip(kinds, scales, strict=True):
        name = f"{parameter.name.removesuffix('.weight')}.{kind_of_scale}"
        yield name, each.shape, str(each.dtype), iter([each])


def _packed(values: npt.NDArray[np.int8]) -> Iterator[npt.NDArray[np.uint8]]:
    # An even number of rows ends on a whole byte.
    for start in range(0, len(values), 64):
        yield pack_int4(values[start : start + 64])


def _in_file_order(parameters: list[Parameter]) -> list[Parameter]:
    """Puts matrices before vectors: they fill whole pages, so alignment costs next to nothing."""
    return sorted(parameters, key=lambda p: len(p.shape) == 1)
