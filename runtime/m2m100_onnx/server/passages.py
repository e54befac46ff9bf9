"""Cuts texts into the sentences that a model translates, and joins their translations.

Line breaks and the blanks around a line stay as they are. sentencex finds the sentences. Knows
strings and where they lie; refuses to know models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sentencex import segment

__all__ = ["Passage", "between", "cut", "joined"]

_BREAKS = re.compile(r"([\r\n]+)")
# Languages that write no space between sentences.
_WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my", "yue")


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    Attributes:
        text: it.
        translated: whether it is a sentence; else it stays as it is.
        glue: whether it is the space between two sentences of a line.
    """

    text: str
    translated: bool
    glue: bool = False


def cut(text: str, language: str) -> list[Passage]:
    """Returns the parts of a text, which make it up when they are joined."""
    return [
        passage
        for position, part in enumerate(_BREAKS.split(text))
        for passage in ([Passage(part, False)] if position % 2 else _sentences(part, language))
        if passage.text or passage.glue
    ]


def _sentences(line: str, language: str) -> Iterator[Passage]:
    body = line.strip()
    if not any(character.isalnum() for character in body):
        yield Passage(line, False)
        return
    start = line.index(body)
    yield Passage(line[:start], False)
    sentences = list(segment(re.split("[-_]", language)[0], body))
    if "".join(sentences) != body:  # What it leaves out must not be lost.
        sentences = [body]
    for position, sentence in enumerate(sentences):
        kept = sentence.rstrip()
        last = position == len(sentences) - 1
        yield Passage(kept, any(character.isalnum() for character in kept))
        if not last:
            yield Passage(sentence[len(kept) :], False, glue=True)
    yield Passage(line[start + len(body) :], False)


def joined(passages: Sequence[Passage], target_lang: str, translations: Mapping[int, str]) -> str:
    """Returns the text that passages make up in another language.

    Args:
        passages: those of `cut`.
        target_lang: the language that the translations have.
        translations: that of each sentence, by the position of its passage.
    """
    return "".join(
        translations[position] if passage.translated else between(passage, target_lang)
        for position, passage in enumerate(passages)
    )


def between(passage: Passage, target_lang: str) -> str:
    """Returns what stands in the place of a passage that is no sentence."""
    if passage.glue and len(passage.text) <= 1:
        without = re.split("[-_]", target_lang)[0] in _WITHOUT_SPACES
        return "" if without else " "
    return passage.text
