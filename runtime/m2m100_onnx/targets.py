"""What a call says of its translations: how they begin, end, how long they are, what they contain.

Knows the tokenizer; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.inputs import Prefix, Prefixes, Row, TermLists, check_prefixes, check_terms
from m2m100_onnx.option import Option
from m2m100_onnx.options import SearchOptions
from m2m100_onnx.terminology import Terminology
from m2m100_onnx.text.stops import Stops
from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["Targets", "count_new_tokens", "spelled", "unmet"]

_NEW_TOKENS = {
    "max_length": Option("max_new_tokens", "int", None, "", 2, 1 << 19),
    "min_length": Option("min_new_tokens", "int", None, "", 0, 1 << 19),
}
# A prefix begins with the language token, which counts as new where there is none.
_BEHIND_PREFIXES = {**_NEW_TOKENS, "max_length": replace(_NEW_TOKENS["max_length"], low=1)}


@dataclass(frozen=True)
class NewTokens:
    """How many tokens a translation has beside those that were given.

    Attributes:
        most: the most; None where `max_length` says it.
        least: the least, `</s>` not counted.
    """

    most: int | None = None
    least: int = 0


def count_new_tokens(given: dict[str, Any], prefixes: Prefixes, positions: int) -> NewTokens:
    """Takes `max_new_tokens` and `min_new_tokens`, which do not count what is given.

    Without a prefix that is the start token, so `max_length` and `min_length` come in their place.

    Args:
        given: the options of a call, which are changed.
        prefixes: what its translations begin with.
        positions: of the model.

    Returns:
        What is to be counted behind each prefix.

    Raises:
        InvalidInputError: both are there, or a value is out of range.
    """
    counts = {}
    for name, option in (_NEW_TOKENS if prefixes is None else _BEHIND_PREFIXES).items():
        if (value := given.pop(option.name, None)) is None:
            continue
        if given.get(name) is not None:
            raise InvalidInputError(
                f"{option.name}: expected either it or {name}, found both; {name} counts the start "
                "token too"
            )
        counts[name] = option.check(value)
    if prefixes is None:
        given.update((name, count + 1) for name, count in counts.items())
        return NewTokens()
    most, least = counts.get("max_length"), counts.get("min_length", 0)
    if most is not None and least > most:
        raise InvalidInputError(
            f"min_new_tokens: expected at most max_new_tokens = {most}, found {least}"
        )
    given.update((name, {"max_length": positions, "min_length": 0}[name]) for name in counts)
    return NewTokens(most, least)


def spelled(search: SearchOptions, tokenizer: Tokenizer) -> SearchOptions:
    """Returns the options with token ids in the place of words that must not occur.

    Raises:
        InvalidInputError: the vocabulary cannot spell a word.
    """
    tokens = search.suppress_tokens
    if search.disable_unk:
        tokens = (*tokens, tokenizer.unk_id)
    sequences = []
    for each in search.suppress_sequences:
        ids = each
        if isinstance(each, str):
            ids = tuple(tokenizer.pieces_to_ids(tokenizer.tokenize(each)))
            if not ids or tokenizer.unk_id in ids:
                raise InvalidInputError(
                    "suppress_sequences: expected words that the vocabulary can spell, found "
                    f"{each!r}"
                )
        sequences.append(ids)
    return replace(search, suppress_tokens=tokens, suppress_sequences=tuple(sequences))


@dataclass(frozen=True)
class Targets:
    """What a call asks of its translations.

    Attributes:
        tokenizer: spells words.
        search: the options.
        stops: what ends a translation beside `</s>`; None for nothing.
        prefixes: what the translations begin with.
        terms: what they must contain where their sources do; some for all, or some for each.
        new_tokens: how many tokens they have behind what is given.
    """

    tokenizer: Tokenizer
    search: SearchOptions
    stops: Stops | None
    prefixes: Prefixes
    terms: Terminology | TermLists
    new_tokens: NewTokens

    @classmethod
    def of(
        cls,
        search: SearchOptions,
        tokenizer: Tokenizer,
        prefixes: Prefixes,
        terms: TermLists,
        new_tokens: NewTokens,
    ) -> Targets:
        """Checks what a call gave.

        Raises:
            InvalidInputError: terms, or their search, are not as they must be.
        """
        if terms is not None and (search.beam_size == 1 or search.num_beam_groups > 1):
            kind = "do_sample = True" if search.do_sample else f"beam_size = {search.beam_size}"
            raise InvalidInputError(
                "terms: expected beam search with beam_size above 1 and without groups, found "
                f"{kind} and num_beam_groups = {search.num_beam_groups}"
            )
        stops = Stops(search.stop_sequences, tokenizer) if search.stop_sequences else None
        common = Terminology(terms, tokenizer) if isinstance(terms, Mapping) else terms
        return cls(tokenizer, search, stops, prefixes, common, new_tokens)

    @property
    def own_terms(self) -> TermLists:
        """Those of each text, where all have no common ones."""
        return None if isinstance(self.terms, Terminology) else self.terms

    def check(self, texts: int | None) -> None:
        """Raises `InvalidInputError` if prefixes or terms are not one, nor one for each text."""
        check_prefixes(texts, self.prefixes)
        check_terms(texts, self.own_terms)

    def sentence(self, position: int, row: Row, source: list[int], prompt: list[int]) -> Sentence:
        """Returns a text as tokens, with what its translation is asked to be.

        Args:
            position: of the text in the call.
            row: the text.
            source: its tokens.
            prompt: the decoder's first tokens.

        Raises:
            InvalidInputError: a prefix or a term cannot be.
        """
        given, start, prefix = 1, len(prompt), row.prefix
        if prefix is not None:
            prompt = [*prompt, *prefix_tokens(self.tokenizer, prefix)]
            given = len(prompt)
        limit, name = self._limit(source, start, given)
        most = self.search.max_length if limit is None else min(limit, self.search.max_length)
        if len(prompt) >= most:
            raise _too_long(len(prompt), most, name if most == limit else "max_length", prefix)
        terms = self._terms(row, len(prompt))
        if terms is not None:
            least, _ = terms.ways(tuple(prompt))
            if len(prompt) + least >= most:
                raise InvalidInputError(
                    f"terms: expected fewer tokens than max_length, or max_length_ratio, allows: "
                    f"{most - len(prompt) - 1} with </s>, found {least}"
                )
        least = given + self.new_tokens.least if self.new_tokens.least else 0
        return Sentence(position, source, prompt, given, limit, least, self.stops, terms)

    def _limit(self, source: list[int], start: int, given: int) -> tuple[int | None, str]:
        """Returns the most tokens of a text's translation beside `max_length`, and what says so.

        Args:
            source: the text's tokens.
            start: how many tokens come before the words.
            given: how many are not new.
        """
        limits: list[tuple[int, str]] = []
        if self.search.max_length_ratio is not None:
            words = math.ceil(self.search.max_length_ratio * self.tokenizer.count_pieces(source))
            limits.append((start + words + 1, "max_length_ratio"))  # with `</s>`
        if self.new_tokens.most is not None:
            limits.append((given + self.new_tokens.most, "max_new_tokens"))
        return min(limits, default=(None, ""))

    def _terms(self, row: Row, given: int) -> Any:
        """Returns what the translation of a text must contain; None for nothing."""
        terms = self.terms if isinstance(self.terms, Terminology) else None
        if row.terms is not None and terms is None:
            terms = Terminology(row.terms, self.tokenizer)
        if terms is None:
            return None
        found = terms.of(row.text, given)
        banned = set(self.search.suppress_tokens)
        for variants in found.variants if found else ():
            if all(banned & set(ids) for ids in variants):
                target = self.tokenizer.decode(variants[0])
                raise InvalidInputError(
                    f"terms: expected targets without suppressed tokens, found {target!r}"
                )
        return found


def _too_long(length: int, most: int, name: str, prefix: Prefix | None) -> InvalidInputError:
    """Returns the error about a text whose prompt leaves no token to be found."""
    if prefix is None:
        return InvalidInputError(
            f"{name}: expected room for a token behind the language token of a text without a "
            f"prefix, found {most} in all"
        )
    return InvalidInputError(
        f"target_prefix: expected fewer than {name} = {most} tokens with the start token and the "
        f"language token, found {length}"
    )


def unmet() -> InvalidInputError:
    """Returns the error about a text whose translation ended without its terms."""
    return InvalidInputError(
        "terms: expected a translation with all of them within max_length and the other options, "
        "found none"
    )


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
