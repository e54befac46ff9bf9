"""Words of a tokenized text, for people to read: which pieces make a word.

Knows pieces; knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m2m100_onnx.text.terms import has_edges

__all__ = ["Word", "words_of"]

_BLANK = "▁"


class Word(NamedTuple):
    """A word: its text, and its first piece and the one after its last."""

    text: str
    start: int
    end: int


def words_of(pieces: Sequence[str]) -> list[Word]:
    """Returns the words of a text.

    A piece begins a word where a blank is before it, or where it does not go on with letters or
    digits. So punctuation marks are words, and in scripts without blanks each piece is one.
    """
    found: list[Word] = []
    for place, piece in enumerate(pieces):
        text = piece.removeprefix(_BLANK)
        last = found[-1].text[-1:] if found else ""
        begins = piece.startswith(_BLANK) or not text
        # A blank of its own belongs to what follows.
        goes_on = not begins and (not last or (has_edges(last) and has_edges(text[0])))
        if found and goes_on:
            before = found.pop()
            found.append(Word(before.text + text, before.start, place + 1))
        else:
            found.append(Word(text, place, place + 1))
    return [word for word in found if word.text]
