"""Inline tags: where they are in a text, and where they go in its translation.

An element goes around the words that stand for its own: of all runs of words, the one that agrees
most with the alignment. Whatever that is, every tag is written once, elements lie in one another as
before, and the text between the tags is the translation. Knows words and alignments; knows neither
documents nor models.
"""

from __future__ import annotations

import html
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from m2m100_onnx.server.passages import Passage, between
from m2m100_onnx.server.placing import Places, Span
from m2m100_onnx.translation import Translation

__all__ = ["Element", "Mark", "elements_of", "is_cut", "tagged"]

_MOST_MARKS = 400
_DEEPEST = 40


@dataclass(frozen=True)
class Mark:
    """A tag in a text.

    Attributes:
        offset: characters before it.
        raw: how it is written.
        kind: whether it begins an element, ends one, or is all of one.
        name: of the element.
    """

    offset: int
    raw: str
    kind: Literal["open", "close", "void"]
    name: str = ""


@dataclass(frozen=True)
class Element:
    """A part of a text, and the tags around it.

    Attributes:
        start: characters before it.
        end: characters before its end.
        opening: its first tag; empty where that lies before the text.
        closing: its last tag; empty where that lies behind the text, or there is none.
        inner: what lies in it, in order.
        begun: whether it began before the text.
        goes_on: whether it goes on behind the text.
    """

    start: int
    end: int
    opening: str
    closing: str = ""
    inner: tuple[Element, ...] = ()
    begun: bool = False
    goes_on: bool = False


def elements_of(marks: Sequence[Mark], length: int) -> tuple[Element, ...] | None:
    """Returns the elements of a text; None where their tags cross, or are too many.

    Args:
        marks: the tags, in order.
        length: of the text.
    """
    if len(marks) > _MOST_MARKS:
        return None
    root: list[Element] = []
    depth = deepest = 0
    stack: list[tuple[Mark, list[Element]]] = []
    for mark in marks:
        siblings = stack[-1][1] if stack else root
        if mark.kind == "void":
            siblings.append(Element(mark.offset, mark.offset, mark.raw))
        elif mark.kind == "open":
            stack.append((mark, []))
            deepest = max(deepest, len(stack))
        elif not stack:  # It began before the text, so all until here is in it.
            root = [Element(0, mark.offset, "", mark.raw, tuple(root), begun=True)]
            depth += 1
        elif stack[-1][0].name == mark.name:
            begun, inner = stack.pop()
            siblings = stack[-1][1] if stack else root
            found = Element(begun.offset, mark.offset, begun.raw, mark.raw, tuple(inner))
            siblings.append(found)
        else:
            return None
    while stack:
        begun, inner = stack.pop()
        siblings = stack[-1][1] if stack else root
        siblings.append(Element(begun.offset, length, begun.raw, "", tuple(inner), goes_on=True))
    return tuple(root) if depth + deepest <= _DEEPEST else None


def is_cut(elements: Sequence[Element], passages: Sequence[Passage]) -> bool:
    """Says whether a tag lies among the words of a sentence: an alignment has to place it then."""
    parts = zip(passages, _parts(elements, passages), strict=True)
    return any(
        passage.translated and _lies_inside(part, passage.text, 0, len(passage.text))
        for passage, part in parts
    )


def _lies_inside(elements: Sequence[Element], text: str, start: int, end: int) -> bool:
    return any(
        _at_edge(each, text, start, end) is None
        or _lies_inside(each.inner, text, each.start, each.end)
        for each in elements
    )


def _at_edge(
    element: Element, text: str, start: int, end: int
) -> Literal["all", "start", "end"] | None:
    """Says whether an element is around all words of a part of a text, or before or behind them."""
    before = not text[start : element.start].strip()
    behind = not text[element.end : end].strip()
    if before and behind and element.end > element.start:
        return "all"
    if element.start == element.end and before:
        return "start"
    return "end" if element.start == element.end and behind else None


def tagged(
    elements: Sequence[Element],
    passages: Sequence[Passage],
    target_lang: str,
    translations: Mapping[int, Translation],
) -> str:
    """Returns HTML: the translation of a text with its elements.

    Args:
        elements: those of the text.
        passages: what it is made of.
        target_lang: the language that the translations have.
        translations: that of each sentence, by the position of its passage; with an alignment
            where `is_cut` says so.
    """
    found = []
    for place, part in enumerate(_parts(elements, passages)):
        passage = passages[place]
        if passage.translated:
            text = translations[place].text
            found.append(_written(_placed(part, passage.text, translations[place]), text))
        else:
            text = between(passage, target_lang)
            found.append(_written(_as_they_are(part), text))
    return "".join(found)


def _parts(elements: Sequence[Element], passages: Sequence[Passage]) -> list[list[Element]]:
    """Returns what lies in each passage; offsets are those in it."""
    starts = [0]
    for passage in passages:
        starts.append(starts[-1] + len(passage.text))
    last = len(passages) - 1

    def home(element: Element, low: int, high: int) -> tuple[int, int]:
        """Returns the passages in which an element begins and ends."""
        first = low if element.begun else bisect_right(starts, element.start) - 1
        first = min(max(first, low), high)
        end = high if element.goes_on else bisect_left(starts, element.end) - 1
        return first, min(max(end, first), high)

    def within(elements: Sequence[Element], place: int, low: int, high: int) -> Iterator[Element]:
        for element in elements:
            first, end = home(element, low, high)
            if not first <= place <= end:
                continue
            inner = tuple(within(element.inner, place, first, end))
            begun, goes_on = element.begun or place > first, element.goes_on or place < end
            opening = element.opening if place == first else ""
            closing = element.closing if place == end else ""
            if not (opening or closing):
                yield from inner
                continue
            low_, high_ = starts[place], starts[place + 1]
            yield Element(
                min(max(element.start, low_), high_) - low_,
                min(max(element.end, low_), high_) - low_,
                opening,
                closing,
                inner,
                begun,
                goes_on,
            )

    return [[*within(elements, place, 0, last)] for place in range(len(passages))]


@dataclass(frozen=True)
class _Placed:
    """An element in a translation: characters before it, and before its end."""

    element: Element
    start: int
    end: int
    inner: tuple[_Placed, ...] = ()


def _written(elements: Sequence[_Placed], text: str, start: int = 0, end: int | None = None) -> str:
    """Returns HTML: a part of a text with elements. What crosses another is made shorter."""
    end = len(text) if end is None else end
    parts = []
    # Elements at the same place stay in their order.
    for each in sorted(elements, key=lambda placed: (placed.start, placed.end)):
        first = min(max(each.start, start), end)
        last = min(max(each.end, first), end)
        parts.append(html.escape(text[start:first], quote=False))
        parts.append(each.element.opening + _written(each.inner, text, first, last))
        parts.append(each.element.closing)
        start = last
    parts.append(html.escape(text[start:end], quote=False))
    return "".join(parts)


def _as_they_are(elements: Sequence[Element]) -> list[_Placed]:
    """Returns elements at the places that they have in the source."""
    return [
        _Placed(each, each.start, each.end, tuple(_as_they_are(each.inner))) for each in elements
    ]


def _placed(elements: Sequence[Element], source: str, translation: Translation) -> list[_Placed]:
    """Returns where the elements of a sentence go in its translation."""
    alignment = translation.hypotheses[0].alignment if translation.hypotheses else None
    places = Places(source, translation.text, alignment)

    def place(elements: Sequence[Element], start: int, end: int, window: Span) -> list[_Placed]:
        taken: list[Span] = []
        found: dict[int, _Placed] = {}
        # First those that are cut by the ends of the text: others are behind or before them, and
        # not in them. Then those with most words.
        order = sorted(
            range(len(elements)),
            key=lambda n: (
                not elements[n].begun,
                not elements[n].goes_on,
                elements[n].start - elements[n].end,
            ),
        )
        for number in order:
            each = elements[number]
            span = _span(each, _at_edge(each, source, start, end), places, window, taken)
            if each.begun:
                window = (span[1], window[1])
            elif each.goes_on:
                window = (window[0], span[0])
            taken.append(span)
            first, last = places.characters(span)
            inner = place(each.inner, each.start, each.end, span)
            found[number] = _Placed(each, first, last, tuple(inner))
        return [found[number] for number in range(len(elements))]

    return place(elements, 0, len(source), (0, places.count))


def _span(
    element: Element,
    edge: Literal["all", "start", "end"] | None,
    places: Places,
    window: Span,
    taken: Sequence[Span],
) -> Span:
    """Returns the words that an element goes around, none for one without words."""
    low, high = window
    if edge == "all":
        return window
    if element.begun or element.goes_on:
        fixed = element.begun, element.goes_on
        return places.words_for((element.start, element.end), window, taken, fixed)
    if edge is not None:
        return (low, low) if edge == "start" else (high, high)
    if element.start == element.end:
        return places.gap(element.start, window, taken)
    return places.words_for((element.start, element.end), window, taken, (False, False))
