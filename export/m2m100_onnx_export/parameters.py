"""Parameters: what the weights file holds of a tensor, and how linear layers and norms become them.

Knows the layouts that the graphs take. Refuses to know which layers a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.tensors import Tensors

__all__ = ["Parameter", "embedding", "linear", "norm", "stored"]

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Parameter:
    """A parameter to write to the weights file.

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


def linear(
    checkpoint: Tensors, name: str, sources: Sequence[str], rows: int, columns: int
) -> list[Parameter]:
    """Joins linear layers that read the same input to one, `rows` to `len(sources) * columns`.

    It becomes `name.weight`, `(in, out)` as `MatMul` takes it, and `name.bias`.

    Args:
        checkpoint: the checkpoint.
        name: the layer's name in the graphs.
        sources: the checkpoint's names of the layers, side by side in this order.
        rows: the width of the input.
        columns: the width of each layer's output.

    Raises:
        BundleError: a tensor is missing or has another shape.
    """
    for source in sources:
        _check(checkpoint, f"{source}.weight", (columns, rows))
        _check(checkpoint, f"{source}.bias", (columns,))

    def weight() -> Iterator[torch.Tensor]:
        yield torch.cat([checkpoint.rows(f"{s}.weight") for s in sources]).t()

    def bias() -> Iterator[torch.Tensor]:
        yield torch.cat([checkpoint.rows(f"{s}.bias") for s in sources])

    total = len(sources) * columns
    return [
        Parameter(f"{name}.weight", (rows, total), weight, matrix=True),
        Parameter(f"{name}.bias", (total,), bias),
    ]


def norm(checkpoint: Tensors, name: str, source: str, width: int) -> list[Parameter]:
    """Returns the weight and the bias of a layer normalization.

    Raises:
        BundleError: a tensor is missing or has another shape.
    """
    return [
        stored(checkpoint, f"{name}.{kind}", f"{source}.{kind}", (width,))
        for kind in ("weight", "bias")
    ]


def embedding(checkpoint: Tensors, name: str, source: str, shape: tuple[int, ...]) -> Parameter:
    """Returns an embedding or an LM head, `(V, D)`, which activations are multiplied by.

    Raises:
        BundleError: the tensor is missing or has another shape.
    """
    return replace(stored(checkpoint, name, source, shape), matrix=True, transposed=True)


def stored(checkpoint: Tensors, name: str, source: str, shape: tuple[int, ...]) -> Parameter:
    """Returns a parameter in the checkpoint's layout, which is read in chunks of rows.

    Raises:
        BundleError: the tensor is missing or has another shape.
    """
    _check(checkpoint, source, shape)

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, shape[0], _ROWS_AT_ONCE):
            yield checkpoint.rows(source, start, min(start + _ROWS_AT_ONCE, shape[0]))

    return Parameter(name, shape, chunks)


def _check(checkpoint: Tensors, name: str, shape: tuple[int, ...]) -> None:
    found = checkpoint.shape(name)
    if found != shape:
        raise BundleError(
            f"{checkpoint.directory}: tensor {name!r}: expected shape {shape} by config.json, "
            f"found {found}"
        )
