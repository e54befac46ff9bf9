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


def count_new_tokens(given: dict[str, Any], prefixes: Prefixes) -> None:
    """Puts `max_length` in the place of `max_new_tokens`, which does not count the start token.

    Args:
        given: the options of a call, which are changed.
        prefixes: what its translations begin with.

    Raises:
        InvalidInputError: both are there, or a prefix is, which only `max_length` counts.
    """
    for name, option in _NEW_TOKENS.items():
        if (value := given.pop(option.name, None)) is None:
            continue
        if given.get(name) is not None:
            raise InvalidInputError(
                f"{option.name}: expected either it or {name}, found both; {name} counts the start "
                "token too"
            )
        if prefixes is not None:
            raise InvalidInputError(
                f"{option.name}: expected {name} with target_prefix, since that counts the prefix, "
                f"found {value!r}"
            )
        given[name] = option.check(value) + 1


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
    """

    tokenizer: Tokenizer
    search: SearchOptions
    stops: Stops | None
    prefixes: Prefixes
    terms: Terminology | TermLists

    @classmethod
    def of(
        cls, search: SearchOptions, tokenizer: Tokenizer, prefixes: Prefixes, terms: TermLists
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
        return cls(tokenizer, search, stops, prefixes, common)

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
        ends = len(prompt) + 1  # with `</s>`
        limit = None
        if self.search.max_length_ratio is not None:
            ratio = self.search.max_length_ratio
            limit = ends + math.ceil(ratio * self.tokenizer.count_pieces(source))
        given, prefix = 1, row.prefix
        if prefix is not None:
            prompt = [*prompt, *prefix_tokens(self.tokenizer, prefix)]
            given = len(prompt)
            self._check_room(limit, len(prompt))
        terms = self._terms(row, len(prompt))
        if terms is not None:
            least, _ = terms.ways(tuple(prompt))
            most = min(limit or self.search.max_length, self.search.max_length)
            if len(prompt) + least >= most:
                raise InvalidInputError(
                    f"terms: expected fewer tokens than max_length, or max_length_ratio, allows: "
                    f"{most - len(prompt) - 1} with </s>, found {least}"
                )
        return Sentence(position, source, prompt, given, limit, self.stops, terms)

    def _check_room(self, limit: int | None, length: int) -> None:
        longest, name = self.search.max_length, "max_length"
        if limit is not None and limit < longest:
            longest, name = limit, "max_length_ratio"
        if length >= longest:
            raise InvalidInputError(
                f"target_prefix: expected fewer than {name} = {longest} tokens with the start "
                f"token and the language token, found {length}"
            )

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
