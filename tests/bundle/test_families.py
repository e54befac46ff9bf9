"""The facts of each family, against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from m2m100_onnx.bundle.families import FAMILIES, first_position


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.has_vocab_file])
def test_codes_and_their_order_are_transformers(name: str) -> None:
    row = FAMILIES[name]
    assert list(row.languages) == FAIRSEQ_LANGUAGE_CODES[row.language_codes]


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_first_position_is_transformers(pad: int) -> None:
    embedding = M2M100SinusoidalPositionalEmbedding(32, 16, padding_idx=pad)
    found = embedding(torch.tensor([[7, 8, 9]]))[0]
    start = first_position(pad)
    assert torch.equal(found, embedding.weights[start : start + 3])
