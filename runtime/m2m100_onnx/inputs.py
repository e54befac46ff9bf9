"""The texts and languages of a call: whether they are several in an order, and which go together.

Refuses to know tokens and models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from typing import Any

from m2m100_onnx.errors import InvalidInputError

__all__ = ["Languages", "Row", "check_languages", "check_texts", "joined"]

Languages = str | Iterable[str]
Row = tuple[Any, str, str]
"""A text with its source and its target language."""


def check_texts(texts: object) -> None:
    """Raises `InvalidInputError` if `texts` are not several in an order."""
    single = isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable)
    if single or getattr(texts, "shape", None) == ():  # an array of no dimensions
        raise InvalidInputError(f"texts: expected several str, found one {type(texts).__name__}")
    if isinstance(texts, (Set, Mapping)):
        kind = type(texts).__name__
        raise InvalidInputError(f"texts: expected them in an order, found a {kind}")


def check_languages(texts: int | None, **languages: object) -> None:
    """Raises `InvalidInputError` if there is neither one language nor one for each text.

    Args:
        texts: how many there are; None if unknown.
        languages: what was given, by name.
    """
    for name, value in languages.items():
        kind = type(value).__name__
        if isinstance(value, str):
            continue
        ordered = isinstance(value, Iterable) and not isinstance(value, (Set, Mapping, bytes))
        if texts is None and not ordered:
            raise InvalidInputError(
                f"{name}: expected one code, or one for each text, found {kind}"
            )
        found = len(value) if ordered and isinstance(value, Sized) else kind
        if texts is not None and found != texts:
            raise InvalidInputError(
                f"{name}: expected one code, or one for each of {texts} texts, found {found}"
            )


def joined(texts: Iterable[str], source_lang: Languages, target_lang: Languages) -> Iterator[Row]:
    """Yields each text with its languages; a stream of languages must not end before the texts."""
    sources, targets = iter(_repeat(source_lang)), iter(_repeat(target_lang))
    for position, text in enumerate(texts):
        try:
            name = "source_lang"
            source = next(sources)
            name = "target_lang"
            target = next(targets)
        except StopIteration:
            raise InvalidInputError(
                f"{name}: expected a code for each text, found {position} codes"
            ) from None
        yield text, source, target


def _repeat(value: Languages) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value
