"""XLM's tokenizer: words to pieces by byte-pair encoding, and pieces to ids.

Ids and texts are those of transformers' `XLMTokenizer` (5.x), except that text never becomes a
control token: `</s>` in a text is read as text. transformers 4 lowercases a text before Moses'
tokenizer sees it, which takes the stops of abbreviations for others; 5 and the published training
data lowercase the words. Knows vocab.json, merges.txt and the settings beside them. Refuses to know
models.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.config import CONFIG_FILE as MODEL_FILE
from m2m100_onnx.bundle.config import read_json
from m2m100_onnx.errors import BundleError
from m2m100_onnx.text.added import (
    CONFIG_FILE,
    AddedToken,
    added_tokens,
    control_tokens,
    pattern_of,
    split_at,
)
from m2m100_onnx.text.checks import checked_ids, refuse_no_text
from m2m100_onnx.text.clean_up import clean_up
from m2m100_onnx.text.files import read_bytes, read_config
from m2m100_onnx.text.languages import unknown_language
from m2m100_onnx.text.moses import Words

__all__ = ["XLMTokenizer"]

VOCAB_FILE: Final = "vocab.json"
MERGES_FILE: Final = "merges.txt"
_END: Final = "</w>"
_ROLES: Final = {
    "bos_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "</s>",
    "mask_token": "<special1>",
}
_SPECIAL: Final = [f"<special{n}>" for n in range(10)]
_MOST_CACHED = 1 << 16
"""Words whose pieces are kept; texts have many words again and again."""


class Entries:
    """Looks up the ids and the pieces of vocab.json and of added tokens."""

    def __init__(self, entries: Mapping[str, int]) -> None:
        self._ids = dict(entries)
        self._pieces = {index: piece for piece, index in entries.items()}

    def add(self, tokens: Iterable[AddedToken]) -> None:
        """Takes up added tokens, some of which may be entries already."""
        for token in tokens:
            self._ids[token.content] = token.index
            self._pieces[token.index] = token.content

    @property
    def last(self) -> int:
        """The largest id."""
        return max(self._pieces)

    def ids(self, pieces: Iterable[str], default: int) -> list[int]:
        """Returns the id of each piece or token, and `default` for anything else."""
        return [self._ids.get(piece, default) for piece in pieces]

    def pieces(self, ids: Iterable[int], default: str) -> list[str]:
        """Returns the piece or token of each id, and `default` for an id without one."""
        return [self._pieces.get(index, default) for index in ids]


class XLMTokenizer:
    """Turns text into the ids that the checkpoint was trained with, and ids back into text.

    Many threads may share an instance, and a pickled copy needs no folder.

    Attributes:
        bos_id: `<s>`, which stands before a text.
        eos_id: `</s>`, which stands after a text.
        pad_id: the token of padding.
        unk_id: the token of what the vocabulary lacks.
        mask_id: the token that stands for a masked one.
        mask_token: the same as text.
        vocab_size: the number of ids: `embedding_rows` if given, else the largest id plus one.
        languages: the codes of the languages that have an id; none where the files list none.
    """

    def __init__(self, directory: Path, *, embedding_rows: int | None = None) -> None:
        """Reads the files of a folder.

        Args:
            directory: holds vocab.json, merges.txt and config.json; tokenizer_config.json,
                special_tokens_map.json and added_tokens.json where the defaults of transformers do
                not hold.
            embedding_rows: rows of the model's embedding. Those without a token decode as the
                unknown token.

        Raises:
            BundleError: a file is missing or broken, a control token has no id, a token has no
                embedding row, or the files disagree about languages.
        """
        path = directory / CONFIG_FILE
        config = read_config(directory)
        self._entries = Entries(_read_entries(directory / VOCAB_FILE))
        self._ranks = _read_merges(directory / MERGES_FILE)
        added = added_tokens(directory, config, self._entries)
        self._entries.add(added.values())
        roles = {role: _content(config.get(role, default)) for role, default in _ROLES.items()}
        ids = dict(zip(roles, self._entries.ids(roles.values(), -1), strict=True))
        for role, index in ids.items():
            if index < 0:
                raise BundleError(
                    f"{directory / VOCAB_FILE}: expected {role} {roles[role]!r} as an entry, "
                    "found none"
                )
        self.bos_id, self.eos_id = ids["bos_token"], ids["sep_token"]
        self.pad_id, self.unk_id = ids["pad_token"], ids["unk_token"]
        self.mask_id, self.mask_token = ids["mask_token"], roles["mask_token"]
        self._unknown = roles["unk_token"]
        self.vocab_size = self._entries.last + 1 if embedding_rows is None else embedding_rows
        if self._entries.last >= self.vocab_size:
            raise BundleError(
                f"{directory}: expected an embedding row for each token, found {embedding_rows} "
                f"rows and a token with id {self._entries.last}"
            )

        # Text never becomes one of the control tokens, and decoded text leaves out special ones.
        self._control = frozenset({*roles.values(), *control_tokens(config), *_SPECIAL})
        listed = () if "additional_special_tokens" in config else _SPECIAL
        marked = (token.content for token in added.values() if token.special)
        self._special_ids = {*self._entries.ids({*roles.values(), *listed, *marked}, -1)}
        whole = {name: token for name, token in added.items() if name not in self._control}
        mask = added.get(self.mask_token, AddedToken(self.mask_token, self.mask_id))
        self._added = whole, pattern_of(whole)
        self._masked = {**whole, mask.content: mask}, pattern_of({*whole, mask.content})

        self._words = Words(
            lowercase=_bool(path, config, "do_lowercase_and_remove_accent", default=True)
        )
        self._clean_up = _bool(path, config, "clean_up_tokenization_spaces", default=False)
        self._language_ids = _languages(directory, config)
        self.languages = tuple(self._language_ids)
        self._cache: dict[str, tuple[str, ...]] = {}

    def language_id(self, code: str) -> int:
        """Returns the id of a language.

        Raises:
            UnknownLanguageError: the code is not one of `languages`; the message has near matches.
        """
        if code not in self._language_ids:
            raise unknown_language(code, self.languages)
        return self._language_ids[code]

    def tokenize(
        self, text: str, language: str = "en", *, pretokenized: bool = False, mask: bool = False
    ) -> list[str]:
        """Splits text into pieces and added tokens; the last piece of a word ends in `</w>`.

        None of them is a control token, but for masks that are asked for.

        Args:
            text: any text.
            language: a code such as `en`, which the rules for words depend on.
            pretokenized: whether words are what blanks part, with their case and accents.
            mask: whether `mask_token` in the text becomes that token.

        Raises:
            DependencyError: a package that splits words is not installed.
            InvalidInputError: `text` is no `str`, or holds a lone surrogate; or its language needs
                a segmenter that there is none of.
        """
        refuse_no_text(text)
        tokens, pattern = self._masked if mask else self._added
        found: list[str] = []
        for part in [text] if pattern is None else split_at(text, tokens, pattern):
            if part in tokens:
                found.append(part)
            else:
                words = part.split() if pretokenized else self._words.split(part, language)
                found += [piece for word in words for piece in self._bpe(word)]
        return found

    def encode(
        self, text: str, language: str = "en", *, pretokenized: bool = False, mask: bool = False
    ) -> list[int]:
        """Returns `<s>`, the ids of the text's pieces, and `</s>`.

        Arguments and errors are those of `tokenize`.
        """
        pieces = self.tokenize(text, language, pretokenized=pretokenized, mask=mask)
        return [self.bos_id, *self.pieces_to_ids(pieces), self.eos_id]

    def pieces_to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Looks up pieces, added tokens and control tokens; anything else becomes `unk_id`.

        The piece `"</s>"` becomes `eos_id`. `tokenize` never returns that piece.
        """
        return self._entries.ids(pieces, self.unk_id)

    def ids_to_pieces(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> list[str]:
        """Looks up the piece of each id; an id without a token is the unknown token.

        Args:
            ids: Python or numpy integers in `[0, vocab_size)`.
            skip_special_tokens: leaves out special tokens, `unk_id` among them.

        Raises:
            InvalidInputError: an id is no integer, or out of range (transformers: `<unk>`).
        """
        skipped: Collection[int] = self._special_ids if skip_special_tokens else ()
        kept = [index for index in checked_ids(ids, self.vocab_size) if index not in skipped]
        return self._entries.pieces(kept, self._unknown)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Joins ids into text: words with a blank between them, as they were tokenized.

        Arguments and errors are those of `ids_to_pieces`.
        """
        pieces = self.ids_to_pieces(ids, skip_special_tokens=skip_special_tokens)
        text = "".join(pieces).replace(_END, " ").strip()
        return clean_up(text) if self._clean_up else text

    def _bpe(self, word: str) -> tuple[str, ...]:
        """Returns the pieces of a word: the pair that was learned first is joined first.

        Source: "Neural Machine Translation of Rare Words with Subword Units",
        https://arxiv.org/abs/1508.07909.
        """
        found = self._cache.get(word)
        if found is None:
            if len(self._cache) >= _MOST_CACHED:
                self._cache = {}
            pieces: Iterable[str] = self._merged([*word[:-1], word[-1] + _END])
            if " " in word:
                # As in transformers: Thai words may be blanks, and keep their case and accents.
                pieces = " ".join(pieces).split(" ")
            if not self._control.isdisjoint(pieces):
                # Single characters never are control tokens.
                pieces = [part for p in pieces for part in (p if p in self._control else [p])]
            found = self._cache[word] = tuple(pieces)
        return found

    def _merged(self, parts: list[str]) -> list[str]:
        last = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, last) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == last:
                break
            joined, place = [], 0
            while place < len(parts):
                if place < len(ranks) and ranks[place] == best:
                    joined.append(parts[place] + parts[place + 1])
                    place += 2
                else:
                    joined.append(parts[place])
                    place += 1
            parts = joined
        return parts


def _content(token: Any) -> Any:
    """Returns a token of the settings as text."""
    return token.get("content") if isinstance(token, dict) else token


def _read_entries(path: Path) -> dict[str, int]:
    entries = read_json(path)
    wrong = [e for e, number in entries.items() if type(number) is not int or number < 0]
    if wrong or len(set(entries.values())) != len(entries):
        what = repr(wrong[0]) if wrong else "an id that two entries have"
        raise BundleError(f"{path}: expected an id of its own for each entry, found {what}")
    return entries


def _read_merges(path: Path) -> Mapping[tuple[str, str], int]:
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: expected UTF-8, found {error}") from None
    # As in transformers, what comes after the last line's end is no merge.
    pairs = [line.split()[:2] for line in lines[:-1]]
    for number, line in enumerate(lines[:-1], 1):
        if len(line.split(" ")) < 2:
            raise BundleError(f"{path}: expected two pieces in line {number}, found {line!r}")
    # A piece may be a blank of another alphabet. As in transformers, it never is part of a pair.
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs) if len(pair) == 2}


def _languages(directory: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids of languages by code, from the tokenizer's settings or else config.json."""
    model = read_json(directory / MODEL_FILE)
    named = {CONFIG_FILE: config.get("lang2id"), MODEL_FILE: model.get("lang2id")}
    for name, found in named.items():
        right = found is None or (
            isinstance(found, dict) and all(type(number) is int for number in found.values())
        )
        if not right:
            raise BundleError(f"{directory / name}: expected lang2id as codes and ids, {found!r}")
    ours, theirs = named.values()
    if ours and theirs and ours != theirs:
        raise BundleError(
            f"{directory / CONFIG_FILE}: expected the lang2id of {MODEL_FILE}, {theirs}, "
            f"found {ours}"
        )
    languages: dict[str, int] = ours or theirs or {}
    count = model.get("n_langs", 1)
    wrong = {code: n for code, n in languages.items() if not 0 <= n < max(count, len(languages))}
    if wrong:
        raise BundleError(
            f"{directory / CONFIG_FILE}: expected ids of languages from 0 to {count - 1}, "
            f"found {wrong}"
        )
    return dict(sorted(languages.items(), key=lambda pair: pair[1]))


def _bool(path: Path, config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise BundleError(f"{path}: expected {name} to be a bool, found {value!r}")
    return value
