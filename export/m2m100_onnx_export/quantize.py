"""Quantization: rounds a matrix to eight or four bits a number. Refuses to know names and files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["INT4_BLOCK", "INT8_MAX", "pack_int4", "quantize_blocks", "quantize_columns"]

# Symmetric, without -128: a weight and its negative round alike.
INT8_MAX = 127
# Numbers of a column that share a scale. With 64 or 128, onnxruntime's AVX-512 kernel sums a row in
# another order if there is a second row. A difference of 1e-7 can round an activation to the other
# side, and one sentence in thirty then depended on the sentences beside it.
INT4_BLOCK = 32
# Candidates for a scale: the largest number of the block divided by one of these. They are negative
# because four bits have eight levels below zero and seven above. Beyond -8 the largest number is
# clipped. More candidates, or positive ones, lower the error by less than one percent.
_INT4_STEPS = (-6.5, -7.0, -7.5, -8.0, -8.5, -9.0, -9.5, -10.0)
# Scales of blocks are whole multiples of their column's scale, so that a number of four bits times
# its multiple is one of eight bits: kernels then multiply both alike. -8 * 15 still fits.
_MOST_MULTIPLE = 15
# Bits of a column's scale. Half precision has eleven, and multiples up to 15 take four.
_COLUMN_BITS = 7
_HALF_STEP = 2.0**-24
# These fit into the processor's cache, and each candidate reads them once.
_NUMBERS_AT_ONCE = 1 << 16


def quantize_columns(
    matrix: torch.Tensor,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rounds a matrix to eight bits with one scale for each column.

    Symmetric per-channel quantization as in section 3 of "Quantizing deep convolutional networks
    for efficient inference" (Krishnamoorthi, 2018): `scale = max |column| / 127`, and
    `matrix ~ quantized * scale`. Deterministic: ties round to even.

    Args:
        matrix: `(in, out)` in any float type.

    Returns:
        The `(in, out)` integers and the `(out,)` scales. A column of zeros has scale 0.
    """
    values = matrix.float()
    scale = values.abs().amax(0) / INT8_MAX
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = torch.round(values / divisor).clamp_(-INT8_MAX, INT8_MAX)
    return rounded.to(torch.int8).numpy(), scale.numpy()


def quantize_blocks(
    matrix: torch.Tensor, block: int = INT4_BLOCK
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """Rounds a matrix to four bits with one scale for each block, of nearly the least error.

    A block is `block` numbers of a column, fewer at its end; `matrix ~ quantized * scale`. The
    search tries clipping ratios, as section 4 of AWQ (Lin et al., 2023) does, but counts the error
    of the weights alone. It has a closed form, as llama.cpp's `make_qx_quants` has: the best scale
    of a block `x` rounded to `q` is `<x, q> / <q, q>`, and the best `q` has the largest
    `<x, q>^2 / <q, q>`. Then scales are rounded to multiples of a scale of their column, as
    section 3 of QLoRA (Dettmers et al., 2023) quantizes scales a second time. Deterministic.

    Args:
        matrix: `(in, out)` in any float type.
        block: numbers that share a scale.

    Returns:
        The `(in, out)` integers from -8 to 7, the `(ceil(in / block), out)` scales, and the
        `(out,)` scales of columns. A scale is -15 to 15 times that of its column to the last bit.
        It is infinite where numbers exceed 500,000. A block of zeros has scale 0.
    """
    size, count = matrix.shape
    blocks = -(-size // block)
    values = np.empty((size, count), np.int8)
    scales, of_columns = np.empty((blocks, count), np.float16), np.empty(count, np.float32)
    step = max(1, _NUMBERS_AT_ONCE // size)
    for start in range(0, count, step):
        columns = slice(start, start + step)
        part = matrix[:, columns]
        # For pieces this small, torch's threads would wait longer than they work.
        padded = np.zeros((blocks * block, part.shape[1]), np.float32)
        padded[:size] = part.float().numpy()
        x = padded.reshape(blocks, block, -1)
        scale, of_column = _as_multiples(x, _best_scales(x))
        rounded = _round_int4(x, scale.astype(np.float32)).reshape(blocks * block, -1)
        values[:, columns], scales[:, columns] = rounded[:size], scale
        of_columns[columns] = of_column
    return values, scales, of_columns


def _as_multiples(
    x: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """Returns multiples of a scale of each column that are near the scales, and those of columns.

    Of the nearest multiple and its two neighbours it is the one of least squared error.

    Args:
        x: the numbers, `(blocks, block, out)`.
        scales: the best scales, `(blocks, out)`.
    """
    target = np.abs(scales).max(0) / _MOST_MULTIPLE
    quantum = np.maximum(np.exp2(np.frexp(target)[1] - _COLUMN_BITS), _HALF_STEP)
    column = (np.ceil(target / quantum) * quantum).astype(np.float32)
    nearest = np.rint(np.divide(scales, column, out=np.zeros_like(scales), where=column > 0))
    best, error = np.zeros_like(scales), np.full_like(scales, np.inf)
    for step in (0, -1, 1):
        # A block of small numbers keeps a scale, which then is larger than the best one.
        size = np.clip(np.abs(nearest) + step, 1, _MOST_MULTIPLE)
        found = np.copysign(size, scales) * column
        lost = _round_int4(x, found) * found[:, None] - x
        square = np.einsum("ijk,ijk->ik", lost, lost)
        best, error = np.where(square < error, found, best), np.minimum(square, error)
    with np.errstate(over="ignore"):
        return np.where(scales != 0, best, 0).astype(np.float16), column


def _best_scales(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the best scales, `(blocks, out)`, of `(blocks, block, out)` numbers."""
    high, low = x.max(1), x.min(1)
    end = np.where(high > -low, high, low)
    gain = np.zeros_like(end)
    scale: npt.NDArray[np.float32] = np.zeros_like(end)
    for steps in _INT4_STEPS:
        rounded = _round_int4(x, end / np.float32(steps))
        square = np.maximum(np.einsum("ijk,ijk->ik", rounded, rounded), 1)
        along = np.einsum("ijk,ijk->ik", x, rounded)
        found = along * along / square
        better = found > gain
        scale = np.where(better, along / square, scale)
        gain = np.where(better, found, gain)
    return scale


def _round_int4(
    x: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    rounded = x * inverse[:, None]
    np.rint(rounded, out=rounded)
    np.clip(rounded, -8, 7, out=rounded)
    return rounded


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Packs integers from -8 to 7 as ONNX does: two a byte, the first in the lower half."""
    flat = values.reshape(-1).view(np.uint8)
    packed = np.zeros((flat.size + 1) // 2, np.uint8)
    packed[: flat.size // 2] = flat[1::2] << 4
    packed |= flat[::2] & 15
    return packed
