"""Weight formats: how a matrix becomes eight bits a number. Knows no names and no files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["INT8_MAX", "quantize_columns"]

# Symmetric: -128 is left out, so that a weight and its negative round alike.
INT8_MAX = 127


def quantize_columns(
    matrix: torch.Tensor,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rounds a matrix to eight bits with one scale a column.

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
