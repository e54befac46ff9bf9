"""Terminology: which terms a text contains, and how often.

Refuses to know tokens and models.

A term is found where it stands as whole words, as it is written or with a capital first letter. Of
terms that overlap the longest one counts. Scripts that put no blanks between words, and Hangul,
whose particles follow without one, have no edges of words: there a term is found anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from m2m100_onnx.errors import InvalidInputError

__all__ = ["Finder", "checked_terms", "has_edges"]

# First and last code points of Thai to Lao, Myanmar, Hangul Jamo, Khmer, Kana to CJK, Hangul
# syllables, CJK compatibility ideographs, and the planes of further ideographs.
_WITHOUT_EDGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class Finder:
    """Finds terms in texts."""

    def __init__(self, terms: Iterable[str]) -> None:
        """Takes the terms."""
        self._forms: dict[str, str] = {}
        for term in terms:
            own = unicodedata.normalize("NFC", term)
            self._forms.setdefault(own, term)
            self._forms.setdefault(own[0].upper() + own[1:], term)
        # Of the forms that begin with a character, longest first.
        self._lengths: dict[str, list[int]] = {}
        for form in sorted(self._forms, key=len, reverse=True):
            lengths = self._lengths.setdefault(form[0], [])
            if len(form) not in lengths:
                lengths.append(len(form))
        self._first = re.compile("|".join(map(re.escape, self._lengths)) or r"(?!)")

    def __call__(self, text: str) -> Iterator[str]:
        """Yields the terms in a text, one for each occurrence, in order.

        The same term with nothing but blanks between counts once: a search that must bring a term
        twice would else say it twice over.
        """
        text = unicodedata.normalize("NFC", text)
        end, last = 0, ""
        for found in self._first.finditer(text):
            start = found.start()
            size = self._size(text, start) if start >= end else 0
            if size:
                term = self._forms[text[start : start + size]]
                if term != last or not text[end:start].isspace():
                    yield term
                end, last = start + size, term

    def _size(self, text: str, start: int) -> int:
        """Returns the length of the longest term that starts at a place; 0 if none does."""
        for size in self._lengths[text[start]]:
            end = start + size
            if (
                end <= len(text)
                and text[start:end] in self._forms
                and not (start and _joined(text[start - 1], text[start]))
                and not (end < len(text) and _joined(text[end - 1], text[end]))
            ):
                return size
        return 0


def _joined(before: str, after: str) -> bool:
    """Whether two characters that follow one another belong to one word."""
    return has_edges(before) and has_edges(after)


@lru_cache(maxsize=4096)
def has_edges(character: str) -> bool:
    """Whether a character is part of words that have edges."""
    # Letters, digits, and the marks that combine with them.
    if unicodedata.category(character)[0] not in "LNM" and character != "_":
        return False
    return not any(first <= ord(character) <= last for first, last in _WITHOUT_EDGES)


def checked_terms(terms: object) -> dict[str, tuple[str, ...]]:
    """Returns terms with the variants of their targets.

    Args:
        terms: maps each term to its target, or to several that may stand for one another.

    Raises:
        InvalidInputError: it does not, or a term or a target is empty.
    """
    if not isinstance(terms, Mapping):
        kind = type(terms).__name__
        raise InvalidInputError(f"terms: expected a mapping of str to str, found {kind}")
    found = {}
    for term, target in terms.items():
        variants = (target,) if isinstance(target, str) else target
        several = isinstance(variants, Sequence) and not isinstance(variants, bytes)
        every = [term, *variants] if several else [term]
        if not several or not variants or not all(isinstance(each, str) for each in every):
            raise InvalidInputError(
                "terms: expected a str, and as its target a str or several, found "
                f"{term!r}: {target!r}"
            )
        if not all(map(str.strip, every)):
            raise InvalidInputError(
                f"terms: expected words on both sides, found {term!r}: {target!r}"
            )
        found[term.strip()] = tuple(each.strip() for each in variants)
    return found
