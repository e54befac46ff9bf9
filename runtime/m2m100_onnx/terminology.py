"""Terms of a call: what each translation must contain, as tokens.

Knows the tokenizer and what a search asks for; knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.search.terms import Terms
from m2m100_onnx.text.terms import Finder, checked_terms, has_edges
from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["Terminology"]


class Terminology:
    """Terms with their targets, for texts of any number."""

    def __init__(self, terms: object, tokenizer: Tokenizer) -> None:
        """Takes what a call gave.

        Args:
            terms: maps each term to its target, or to variants that may stand for one another.
            tokenizer: spells the targets.

        Raises:
            InvalidInputError: it does not, or the vocabulary cannot spell a target.
        """
        self._tokenizer = tokenizer
        self._targets = checked_terms(terms)
        self._finder = Finder(self._targets)
        self._spelled: dict[str, tuple[str, tuple[int, ...]]] = {}

    def of(self, text: str, given: int) -> Terms | None:
        """Returns what the translation of a text must contain; None for nothing.

        Args:
            text: the source.
            given: tokens of the decoder's prompt.

        Raises:
            InvalidInputError: the vocabulary cannot spell a target.
        """
        # Several terms may have the same targets.
        counts = Counter(self._targets[term] for term in self._finder(text))
        if not counts:
            return None
        every = [[self._spell(target) for target in targets] for targets in counts]
        texts = [tuple(text for text, _ in variants) for variants in every]
        variants = tuple(tuple(ids for _, ids in some) for some in every)
        met = _Met(self._tokenizer, texts, tuple(counts.values()))
        return Terms(variants, tuple(counts.values()), met, given)

    def _spell(self, target: str) -> tuple[str, tuple[int, ...]]:
        """Returns a target as the tokenizer gives it back, and its tokens."""
        if target not in self._spelled:
            pieces = self._tokenizer.tokenize(target)
            ids = self._tokenizer.pieces_to_ids(pieces)
            if self._tokenizer.unk_id in ids:
                missing = pieces[ids.index(self._tokenizer.unk_id)]
                raise InvalidInputError(
                    f"terms: expected targets that the vocabulary can spell, found {target!r} with "
                    f"{missing!r}"
                )
            if not has_edges(target[0]):
                # No blank goes before a word of this script inside a text.
                bare = pieces[0].removeprefix("▁")
                inside = self._tokenizer.pieces_to_ids([bare])
                if not bare:
                    ids = ids[1:]
                elif self._tokenizer.unk_id not in inside:
                    ids = [*inside, *ids[1:]]
            self._spelled[target] = self._tokenizer.decode(ids), tuple(ids)
        return self._spelled[target]


class _Met:
    """Counts terms in the text of tokens."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], counts: tuple[int, ...]
    ) -> None:
        self._tokenizer, self._texts, self._counts = tokenizer, texts, counts
        self._words = sorted({word for variants in texts for word in variants})
        self._finder = Finder(self._words)
        # A step asks for the same sequence twice.
        self._count = lru_cache(maxsize=256)(self._counted)

    def __call__(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return self._count(tokens)

    def _counted(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        found = [0] * len(self._texts)
        text = self._tokenizer.decode(tokens)
        for word in self._finder(text):
            # Where two terms share a variant, it counts for the one that still lacks one.
            own = [n for n, variants in enumerate(self._texts) if word in variants]
            lacking = [n for n in own if found[n] < self._counts[n]]
            found[(lacking or own)[0]] += 1
        return tuple(found)
