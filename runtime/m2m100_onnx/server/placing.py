"""Which words of a translation stand for a part of its source, by an alignment.

Knows two texts and an alignment; knows no tags.
"""

from __future__ import annotations

from collections.abc import Sequence

from m2m100_onnx.translation import Alignment

__all__ = ["Places", "Span"]

Span = tuple[int, int]
"""The first of some words, and the one after the last."""

_FURTHEST = 12
"""Characters between two words at most; what the tokenizer changes is not found in the text."""
_DOUBTFUL = 0.3
"""What a word counts that does not choose its source word as that chooses it; others count 1."""
_MARK = 0.01
"""What a punctuation mark counts that chooses so: a run may have it inside, and not at its end."""
_NO_PART = 0.1
"""Attention below which no word stands for a part."""
_TAKEN = -1e6


class Places:
    """The words of a translation.

    Attributes:
        count: how many there are; without an alignment the translation is one.
    """

    def __init__(self, source: str, target: str, alignment: Alignment | None) -> None:
        """Takes a text, its translation, and the alignment of both."""
        self._length = len(target)
        if alignment is None or not alignment.target_words:
            # One word, which stands for nothing.
            self._sources: list[Span] = []
            self._targets, self.count = [(0, len(target))], 1
            self._matrix: Sequence[Sequence[float]] = [()]
            self._chosen: list[tuple[int, float]] = [(-1, _DOUBTFUL)]
            return
        self._sources = _found(alignment.source_words, source)
        self._targets = _found(alignment.target_words, target)
        self._matrix = alignment.matrix
        # The source word of each target word, and how sure that is.
        self._chosen = []
        pairs = {target: source for source, target in alignment.pairs}
        for place, row in enumerate(self._matrix):
            best = max(range(len(row)), key=row.__getitem__, default=-1)
            if place in pairs:
                self._chosen.append((pairs[place], 1.0))
            else:
                is_word = any(character.isalnum() for character in alignment.target_words[place])
                self._chosen.append((best, _DOUBTFUL if is_word else _MARK))
        self.count = len(self._targets)

    def characters(self, span: Span) -> Span:
        """Returns the characters of words; those at the ends of the text belong to them."""
        first, last = span
        start = self._targets[first][0] if first < self.count else self._length
        if not first:
            start = 0
        if last >= self.count:
            return start, self._length
        return start, self._targets[last - 1][1] if last > first else start

    def words_for(
        self, part: Span, window: Span, taken: Sequence[Span], fixed: tuple[bool, bool]
    ) -> Span:
        """Returns the run of words that agrees most with a part of the source.

        A word counts for a run if it stands for a word of the part, and against it if it does not.

        Args:
            part: characters of the source.
            window: the words among which the run lies.
            taken: runs that it does not touch.
            fixed: whether it begins where the window does, and ends there.
        """
        own = self._own(part)
        weights = [
            sure if source in own and sure > _MARK else -sure
            for source, sure in self._chosen[window[0] : window[1]]
        ]
        for first, last in taken if not any(fixed) else ():
            for place in range(max(first, window[0]), min(last, window[1])):
                weights[place - window[0]] = _TAKEN
        span, agrees = _best_run(weights, *fixed)
        first, last = span[0] + window[0], span[1] + window[0]
        if agrees <= 0 and not any(fixed):
            return self._likeliest(own, weights, window) or self.gap(part[0], window, taken)
        return first, last

    def _likeliest(self, own: set[int], weights: Sequence[float], window: Span) -> Span | None:
        """Returns the word that attends most to some source words, if one does."""
        free = [n for n in range(*window) if weights[n - window[0]] > _TAKEN]
        masses = {place: sum(self._matrix[place][source] for source in own) for place in free}
        best = max(masses, key=masses.__getitem__, default=None)
        return None if best is None or masses[best] < _NO_PART else (best, best + 1)

    def _own(self, part: Span) -> set[int]:
        """Returns the source words of a part of the source."""
        return {
            place
            for place, (start, end) in enumerate(self._sources)
            if start < part[1] and end > part[0]
        }

    def gap(self, offset: int, window: Span, taken: Sequence[Span]) -> Span:
        """Returns where something without words goes, such as an image: after what is before it.

        Args:
            offset: characters of the source before it.
            window: the words among which it goes.
            taken: runs that it does not cut.
        """
        low, high = window
        before = sum(end <= offset for _, end in self._sources)
        of = {source: place for place, (source, sure) in enumerate(self._chosen) if sure == 1.0}
        found = low if before == 0 else None
        for source in range(before - 1, -1, -1):
            if found is None and low <= of.get(source, -1) < high:
                found = of[source] + 1
        for source in range(before, len(self._sources)):
            if found is None and low <= of.get(source, -1) < high:
                found = of[source]
        if found is None:
            found = high
        for first, last in taken:
            if first < found < last:
                found = last
        return found, found


def _best_run(weights: Sequence[float], from_start: bool, to_end: bool) -> tuple[Span, float]:
    """Returns the run of the largest sum, the first and shortest of those, and its sum.

    Args:
        weights: of the places.
        from_start: whether it begins with the first place.
        to_end: whether it ends with the last.
    """
    count = len(weights)
    if from_start and to_end:
        return (0, count), sum(weights)
    if to_end:
        (first, last), found = _best_run([*reversed(weights)], True, False)
        return (count - last, count - first), found
    best, total = (0, 0), 0.0
    start, run = 0, 0.0
    for place, weight in enumerate(weights):
        if run <= 0 and not from_start:
            start, run = place, 0.0
        run += weight
        if run > total:
            best, total = (start, place + 1), run
    return best, total


def _found(words: Sequence[str], text: str) -> list[Span]:
    """Returns the characters of words in their text; none for what is not in it as it is."""
    found: list[Span | None] = []
    position, reach = 0, _FURTHEST
    for word in words:
        start = text.find(word, position, position + reach + len(word))
        if start < 0:
            found.append(None)
            reach += 2 * len(word)
        else:
            position, reach = start + len(word), _FURTHEST
            found.append((start, position))
    # One that is missing lies between its neighbours.
    spans: list[Span] = []
    following = len(text)
    ends = [0]
    for span in found:
        ends.append(span[1] if span else ends[-1])
    for place in reversed(range(len(found))):
        span = found[place]
        spans.append(span or (ends[place], following))
        following = spans[-1][0]
    return spans[::-1]
