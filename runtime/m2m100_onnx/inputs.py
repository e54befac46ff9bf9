"""The texts and languages of a call: whether they are several in an order, and which go together.

Refuses to know tokens and models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from types import NoneType
from typing import Any

from m2m100_onnx.errors import InvalidInputError

__all__ = [
    "Languages",
    "Prefix",
    "Prefixes",
    "Row",
    "check_languages",
    "check_prefixes",
    "check_texts",
    "joined",
]

Languages = str | Iterable[str]
Prefix = str | Sequence[int] | None
"""What a translation begins with: text or tokens; None for nothing."""
Prefixes = str | Iterable[Prefix] | None
"""One prefix for all texts, or one for each."""
Row = tuple[Any, str, str, Prefix]
"""A text with its source and its target language, and what its translation begins with."""


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


def check_prefixes(texts: int | None, prefixes: object) -> None:
    """Raises `InvalidInputError` if there is neither one prefix, nor one for each text.

    Args:
        texts: how many there are; None if unknown.
        prefixes: what was given.
    """
    if prefixes is None or isinstance(prefixes, str):
        return
    ordered = isinstance(prefixes, Iterable) and not isinstance(prefixes, (Set, Mapping, bytes))
    found = len(prefixes) if isinstance(prefixes, Sized) else texts
    if not ordered or (texts is not None and found != texts):
        kind = found if ordered else type(prefixes).__name__
        raise InvalidInputError(
            "target_prefix: expected a str, or a str or a list of tokens for each of "
            f"{'the' if texts is None else texts} texts, found {kind}"
        )


def joined(
    texts: Iterable[str],
    source_lang: Languages,
    target_lang: Languages,
    prefixes: Prefixes = None,
) -> Iterator[Row]:
    """Yields each text with what belongs to it; no stream of that must end before the texts."""
    sources, targets = iter(_repeat(source_lang)), iter(_repeat(target_lang))
    firsts = iter(itertools.repeat(prefixes) if isinstance(prefixes, (str, NoneType)) else prefixes)
    for position, text in enumerate(texts):
        try:
            name, kinds = "source_lang", ("code", "codes")
            source = next(sources)
            name = "target_lang"
            target = next(targets)
            name, kinds = "target_prefix", ("prefix", "prefixes")
            first = next(firsts)
        except StopIteration:
            raise InvalidInputError(
                f"{name}: expected a {kinds[0]} for each text, found {position} {kinds[1]}"
            ) from None
        yield text, source, target, first


def _repeat(value: Languages) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value
