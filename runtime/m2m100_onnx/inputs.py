"""The texts and languages of a call: whether they are several in an order, and which go together.

Refuses to know tokens and models.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from types import NoneType
from typing import Any, NamedTuple

from m2m100_onnx.errors import InvalidInputError, M2M100Error

__all__ = [
    "Languages",
    "Prefix",
    "Prefixes",
    "Row",
    "TermLists",
    "Terms",
    "check_languages",
    "check_prefixes",
    "check_terms",
    "check_texts",
    "joined",
    "located",
]

Languages = str | Iterable[str]
Prefix = str | Sequence[int] | None
"""What a translation begins with: text or tokens; None for nothing."""
Prefixes = str | Iterable[Prefix] | None
"""One prefix for all texts, or one for each."""
Terms = Mapping[str, str | Sequence[str]]
"""Terms with their targets; a target may have variants."""
TermLists = Terms | Iterable[Terms | None] | None
"""Terms for all texts, or some for each."""


class Row(NamedTuple):
    """A text with what belongs to it.

    Attributes:
        text: the text, as the caller gave it.
        source_lang: its language.
        target_lang: the language to translate into.
        prefix: what its translation begins with.
        terms: what its translation must contain, where all texts have no common ones.
    """

    text: Any
    source_lang: str
    target_lang: str
    prefix: Prefix = None
    terms: Terms | None = None


_NOTHING = object()
"""What no stream yields."""


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


def as_texts(text: str | Sequence[str], options: Any) -> Sequence[str]:
    """Returns the texts of a call that takes one or several.

    Args:
        text: one, or several.
        options: those of the call; the prefix of one text becomes that of each of its texts.
    """
    if not isinstance(text, str):
        return text
    if options.get("target_prefix") is not None:
        options["target_prefix"] = [options["target_prefix"]]
    return [text]


def check_prefixes(texts: int | None, prefixes: object) -> None:
    """Raises `InvalidInputError` if there is neither one prefix, nor one for each text.

    Args:
        texts: how many there are; None if unknown.
        prefixes: what was given.
    """
    if not isinstance(prefixes, str):
        kinds = "a str, or a str or a list of tokens"
        _check_each("target_prefix", kinds, texts, prefixes, (Set, Mapping, bytes))


def check_terms(texts: int | None, terms: object) -> None:
    """Raises `InvalidInputError` if there are neither common terms, nor some for each text.

    Args:
        texts: how many there are; None if unknown.
        terms: what was given.
    """
    if not isinstance(terms, Mapping):
        _check_each("terms", "a mapping, or a mapping or None", texts, terms, (Set, str, bytes))


def _check_each(
    name: str, kinds: str, texts: int | None, given: object, wrong: tuple[type, ...]
) -> None:
    if given is None:
        return
    ordered = isinstance(given, Iterable) and not isinstance(given, wrong)
    found = len(given) if isinstance(given, Sized) else texts
    if not ordered or (texts is not None and found != texts):
        kind = found if ordered else type(given).__name__
        raise InvalidInputError(
            f"{name}: expected {kinds} for each of "
            f"{'the' if texts is None else texts} texts, found {kind}"
        )


def joined(
    texts: Iterable[str],
    source_lang: Languages,
    target_lang: Languages,
    prefixes: Prefixes = None,
    terms: TermLists = None,
) -> Iterator[Row]:
    """Yields each text with what belongs to it; no stream of that must end before the texts.

    Args:
        texts: the texts.
        source_lang: their language, or one for each.
        target_lang: the language to translate into, or one for each.
        prefixes: what the translations begin with.
        terms: some for each text; common ones are in no row.
    """
    common = terms is None or isinstance(terms, Mapping)
    streams = {
        "source_lang: expected a code for each text, found {} codes": source_lang,
        "target_lang: expected a code for each text, found {} codes": target_lang,
        "target_prefix: expected a prefix for each text, found {} prefixes": prefixes,
        "terms: expected a mapping or None for each text, found {}": None if common else terms,
    }
    each = [(missing, iter(_repeat(stream))) for missing, stream in streams.items()]
    for position, text in enumerate(texts):
        found: list[Any] = []
        for missing, stream in each:
            value = next(stream, _NOTHING)
            if value is _NOTHING:
                raise InvalidInputError(missing.format(position))
            found.append(value)
        yield Row(text, *found)


@contextlib.contextmanager
def located(position: int | None) -> Iterator[None]:
    """Gives an error about a text the text's position; None where there is only one text."""
    try:
        yield
    except M2M100Error as error:
        error.position = position
        raise


def _repeat(value: Any) -> Iterable[Any]:
    return itertools.repeat(value) if isinstance(value, (str, NoneType)) else value
