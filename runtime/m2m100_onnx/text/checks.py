"""What every tokenizer requires of the texts and the ids that it gets.

Refuses to know vocabularies.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from m2m100_onnx.errors import InvalidInputError

__all__ = ["checked_ids", "refuse_no_text"]


def refuse_no_text(text: object) -> None:
    """Raises `InvalidInputError` if `text` is no `str`, or holds a lone surrogate."""
    if not isinstance(text, str):
        raise InvalidInputError(f"text: expected a str, found {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            "text: expected valid Unicode, found the lone surrogate "
            f"U+{ord(text[error.start]):04X} at character {error.start} "
            f"in {text[max(0, error.start - 20) : error.start + 20]!a}"
        ) from None


def checked_ids(ids: Iterable[int], count: int) -> list[int]:
    """Returns ids as Python integers.

    Args:
        ids: Python or numpy integers.
        count: the number of ids.

    Raises:
        InvalidInputError: an id is no integer, or not in `[0, count)`.
    """
    try:
        checked = [operator.index(index) for index in ids]
    except TypeError as error:
        raise InvalidInputError(
            f"ids: expected a flat sequence of integers, found {error}"
        ) from None
    for index in checked:
        if not 0 <= index < count:
            raise InvalidInputError(f"ids: expected 0 to {count - 1}, found {index}")
    return checked
