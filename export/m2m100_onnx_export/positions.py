"""The table of sinusoidal positions. Refuses to know files and graphs."""

from __future__ import annotations

import math

import torch

from m2m100_onnx.bundle.config import ModelConfig
from m2m100_onnx.bundle.families import first_position

__all__ = ["count_positions", "sinusoidal_positions"]


def sinusoidal_positions(config: ModelConfig) -> torch.Tensor:
    """Returns the position table, bit for bit as transformers computes it.

    Its `(max_position_embeddings + first_position, d_model)` rows start with those of no token.
    Source: tensor2tensor's variant of section 3.5 of "Attention Is All You Need", as
    `M2M100SinusoidalPositionalEmbedding` computes it: sines in the first half of the columns,
    cosines in the second, the row of the padding token zero.
    """
    half = config.d_model // 2
    count = count_positions(config)
    rate = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angle = torch.arange(count).float().unsqueeze(1) * rate.unsqueeze(0)
    table = torch.zeros(count, config.d_model)
    table[:, :half] = torch.sin(angle)
    table[:, half : 2 * half] = torch.cos(angle)
    table[config.pad_token_id] = 0
    return table


def count_positions(config: ModelConfig) -> int:
    """Returns the number of rows of the position table."""
    return config.max_position_embeddings + first_position(config.pad_token_id)
