"""What a call says of its translations: what they begin with, and how many tokens they may have.

Knows the tokenizer; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.inputs import Prefix, Prefixes
from m2m100_onnx.option import Option
from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["count_new_tokens", "prefix_tokens"]

_NEW_TOKENS = {
    "max_length": Option("max_new_tokens", "int", None, "", 2, 1 << 19),
    "min_length": Option("min_new_tokens", "int", None, "", 0, 1 << 19),
}


def count_new_tokens(given: dict[str, Any], prefixes: Prefixes) -> None:
    """Puts `max_length` in the place of `max_new_tokens`, which does not count the start token.

    Args:
        given: the options of a call, which are changed.
        prefixes: what its translations begin with.

    Raises:
        InvalidInputError: both are there, or a prefix is, which only `max_length` counts.
    """
    for name, option in _NEW_TOKENS.items():
        if (value := given.pop(option.name, None)) is None:
            continue
        if given.get(name) is not None:
            raise InvalidInputError(
                f"{option.name}: expected either it or {name}, found both; {name} counts the start "
                "token too"
            )
        if prefixes is not None:
            raise InvalidInputError(
                f"{option.name}: expected {name} with target_prefix, since that counts the prefix, "
                f"found {value!r}"
            )
        given[name] = option.check(value) + 1


def prefix_tokens(tokenizer: Tokenizer, prefix: Prefix) -> list[int]:
    """Returns the tokens of what a translation is to begin with.

    Raises:
        InvalidInputError: it is neither text nor tokens, or not words of a text.
    """
    if isinstance(prefix, str):
        ids = tokenizer.pieces_to_ids(tokenizer.tokenize(prefix))
    elif isinstance(prefix, Sequence) and not isinstance(prefix, (str, bytes)):
        ids = list(prefix)
    else:
        kind = type(prefix).__name__
        raise InvalidInputError(f"target_prefix: expected text or tokens, found {kind}")
    pieces = tokenizer.ids_to_pieces(ids)
    words = tokenizer.ids_to_pieces(ids, skip_special_tokens=True)
    if len(words) < len(pieces):
        other = next(p for n, p in enumerate(pieces) if words[n : n + 1] != [p])
        raise InvalidInputError(f"target_prefix: expected words of a text, found {other}")
    if not ids:
        raise InvalidInputError(f"target_prefix: expected a token or more, found {prefix!r}")
    return ids
