"""The blanks that transformers takes out of decoded text. Refuses to know tokens."""

from __future__ import annotations

from typing import Final

__all__ = ["clean_up"]

# Checkpoints that transformers saved before 4.45 may ask for it.
# Source: `clean_up_tokenization` of transformers' tokenizers, in this order.
_CLEAN_UP: Final = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {tail}", tail) for tail in ("n't", "'m", "'s", "'ve", "'re")),
)


def clean_up(text: str) -> str:
    """Returns decoded text as `clean_up_tokenization_spaces` has it."""
    for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text
