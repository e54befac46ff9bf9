"""Tokens that a checkpoint's files add to its vocabulary, and where a text has them.

Knows the three places where transformers stores added tokens: `added_tokens_decoder` of
tokenizer_config.json, and the older added_tokens.json and special_tokens_map.json. Refuses to know
pieces and sequences.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.config import read_json
from m2m100_onnx.errors import BundleError
from m2m100_onnx.text.vocabulary import Ids

__all__ = [
    "ADDED_FILE",
    "CONFIG_FILE",
    "AddedToken",
    "added_tokens",
    "control_tokens",
    "pattern_of",
    "split_at",
]

CONFIG_FILE: Final = "tokenizer_config.json"
ADDED_FILE: Final = "added_tokens.json"

_FLAGS: Final = ("special", "lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token that stands whole in a text, under the names of transformers.

    transformers' `normalized` has no effect here: its tokenizer of M2M100 normalizes nothing before
    it looks for added tokens.

    Attributes:
        content: the token.
        index: its id.
        special: whether decoded text leaves it out.
        lstrip: whether blanks before it are dropped.
        rstrip: whether blanks after it are dropped.
        single_word: whether it counts between blanks alone.
    """

    content: str
    index: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def added_tokens(folder: Path, config: Mapping[str, Any], vocabulary: Ids) -> dict[str, AddedToken]:
    """Returns the tokens that a folder's files add or declare as special, by content.

    Args:
        folder: holds the tokenizer's files.
        config: the contents of tokenizer_config.json, joined with those of special_tokens_map.json
            where that counts.
        vocabulary: the vocabulary, language tokens included.

    Raises:
        BundleError: a token has no id, or the id of another token.
    """
    path = folder / CONFIG_FILE
    named = control_tokens(config) | _extra_tokens(config)
    found: dict[str, AddedToken] = {}
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        token = _decoder_token(path, key, entry)
        found[token.content] = token
    older = folder / ADDED_FILE
    if not found and older.exists():
        path = older
        for content, index in read_json(older).items():
            if type(index) is not int or index < 0 or not content:
                raise _wrong(older, content, f"an id of 0 or more, found {index!r}")
            found[content] = AddedToken(content, index, special=content in named)
    for content in sorted(named):
        if content not in found:
            (index,) = vocabulary.ids([content], -1)
            if index < 0:
                raise _wrong(
                    folder / CONFIG_FILE,
                    content,
                    f"an id in added_tokens_decoder, in {ADDED_FILE} or in the vocabulary, "
                    "found none",
                )
            found[content] = AddedToken(content, index, special=True)
    _check_ids(path, found.values(), vocabulary)
    return found


def _decoder_token(path: Path, key: str, entry: object) -> AddedToken:
    """Reads one entry of `added_tokens_decoder`."""
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(content, str) or not content:
        raise BundleError(f"{path}: expected added token {key} with a content, found {entry!r}")
    if not key.isdecimal():
        raise _wrong(path, content, f"an id of 0 or more, found {key!r}")
    flags = {name: entry.get(name, False) for name in _FLAGS}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise _wrong(path, content, f"{name} to be a bool, found {value!r}")
    return AddedToken(content, int(key), **flags)


def _check_ids(path: Path, tokens: Iterable[AddedToken], vocabulary: Ids) -> None:
    """Raises `BundleError` if two tokens share an id, or a token has two."""
    owners: dict[int, str] = {}
    for token in tokens:
        (index,) = vocabulary.ids([token.content], token.index)
        if index != token.index:
            raise _wrong(path, token.content, f"the vocabulary's id {index}, found {token.index}")
        (owner,) = vocabulary.pieces([token.index], "")
        owner = owners.setdefault(token.index, owner or token.content)
        if owner != token.content:
            raise _wrong(
                path, token.content, f"an id of its own, found {token.index}, the id of {owner!r}"
            )


def _wrong(path: Path, content: str, expected: str) -> BundleError:
    return BundleError(f"{path}: added token {content!r}: expected {expected}")


def control_tokens(config: Mapping[str, Any]) -> set[str]:
    """Returns the tokens with a role of their own: `sep_token`, `mask_token` and the like."""
    return {
        token
        for key, value in config.items()
        if key.endswith("_token")  # `add_bos_token` is a bool
        for token in _contents([value])
    }


def _extra_tokens(config: Mapping[str, Any]) -> set[str]:
    """Returns the special tokens without a role."""
    found = set()
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        found |= {*_contents([*value.values()] if isinstance(value, dict) else value)}
    return found


def _contents(values: object) -> Iterator[str]:
    for entry in values if isinstance(values, list) else ():
        token = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(token, str) and token:
            yield token


def split_at(text: str, tokens: Mapping[str, AddedToken], pattern: re.Pattern[str]) -> list[str]:
    """Splits a text at added tokens; each part is one of `tokens` or text without any.

    The rules are those of `tokenize` of transformers' Python tokenizers: the leftmost token counts,
    and of those that start together the longest. A token with `single_word` that touches another
    word stays part of that word.

    Args:
        text: any text.
        tokens: the tokens to look for.
        pattern: what `pattern_of` returned for them.
    """
    parts = [part for part in pattern.split(text) if part]
    for place, part in enumerate(parts):
        token = tokens.get(part)
        if token is None:
            continue
        left = parts[place - 1] if place else ""
        right = parts[place + 1] if place + 1 < len(parts) else ""
        if token.rstrip and right:
            parts[place + 1] = right.lstrip()
        if token.lstrip and left:
            parts[place - 1] = left.rstrip()
        if token.single_word:
            # As in transformers, what counts is the neighbour before its blanks were dropped.
            if left and left[-1] != " ":
                parts[place - 1] += part
                parts[place] = ""
            elif right and right[0] != " ":
                parts[place + 1] = part + parts[place + 1]
                parts[place] = ""
    return [part for part in parts if part]


def pattern_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    """Returns the pattern that finds the longest of `tokens` at each place, None without tokens."""
    if not tokens:
        return None
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")
