"""What every search returns and checks: hypotheses, the norm of their scores, the arguments.

Knows token ids and scores; knows no rows and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.state import Int64Array

__all__ = ["Hypothesis", "check_arguments", "length_norm", "require", "shared_prefix"]


@dataclass(frozen=True)
class Hypothesis:
    """One result of a search.

    Attributes:
        tokens: start, language, ..., `</s>` (absent where `max_length` cut it); no padding.
        score: `sum(log_probs) / (len(tokens) - given) ** length_penalty`, as `sequences_scores`;
            the decoder of a translation is given one token, a language model its prompt.
        log_probs: of each token after the prompt, with the constraints that the search put on it.
    """

    tokens: tuple[int, ...]
    score: float
    log_probs: tuple[float, ...] = ()


def length_norm(length: int, options: SearchOptions) -> float:
    """Returns the divisor of a score of `length` tokens, without those that were given."""
    return float(length**options.length_penalty)


def shared_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the longest prefix of all of at least one sequence."""
    # What is between the least and the greatest begins as both do.
    first, last = min(sequences), max(sequences)
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:place]
    return min(first, last, key=len)


def check_arguments(
    vocab_size: int, prompt: Int64Array, eos_id: int, options: SearchOptions
) -> None:
    """Checks what a search is made of.

    Raises:
        InvalidInputError: shapes or ids do not fit together.
    """
    require(prompt.ndim == 2, "prompt", "shape (B, P)", prompt.shape)
    length = prompt.shape[1]
    longest = options.max_length - 1
    require(1 <= length <= longest, "prompt", f"1 to {longest} tokens", length)
    for token in (eos_id, *options.suppress_tokens):
        accepted = f"a token from 0 to {vocab_size - 1}"
        require(0 <= token < vocab_size, "eos_id or a suppressed token", accepted, token)


def require(valid: bool, name: str, accepted: str, found: object) -> None:
    """Raises `InvalidInputError`, with what was expected and found, unless `valid`."""
    if not valid:
        raise InvalidInputError(f"{name}: expected {accepted}, found {found!r}")
