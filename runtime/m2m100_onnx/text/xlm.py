"""XLM's tokenizer: words to pieces by byte-pair encoding, and pieces to ids.

Ids and texts are those of transformers' `XLMTokenizer` (5.x), except that text never becomes a
control token: `</s>` in a text is read as text. Knows vocab.json, merges.txt and the settings
beside them. Refuses to know models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.config import CONFIG_FILE as MODEL_FILE
from m2m100_onnx.bundle.config import read_json
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.text.added import CONFIG_FILE, control_tokens
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
        languages: the codes of the languages that have an id; none where the files list none.
    """

    def __init__(self, directory: Path) -> None:
        """Reads the files of a folder.

        Args:
            directory: holds vocab.json, merges.txt and config.json; tokenizer_config.json and
                special_tokens_map.json where the defaults of transformers do not hold.

        Raises:
            BundleError: a file is missing or broken, a control token has no id, or the files
                disagree about languages.
        """
        self._entries = _read_entries(directory / VOCAB_FILE)
        self._pieces = {number: piece for piece, number in self._entries.items()}
        self._ranks = _read_merges(directory / MERGES_FILE)
        config = read_config(directory)
        path = directory / CONFIG_FILE
        lowercase = _bool(path, config, "do_lowercase_and_remove_accent", default=True)
        self._clean_up = _bool(path, config, "clean_up_tokenization_spaces", default=False)
        self._words = Words(lowercase=lowercase)
        ids = {}
        for role, default in _ROLES.items():
            value = config.get(role, default)
            token = value.get("content") if isinstance(value, dict) else value
            if token not in self._entries:
                raise BundleError(
                    f"{directory / VOCAB_FILE}: expected {role} {token!r} as an entry, found none"
                )
            ids[role] = self._entries[token]
        self.bos_id, self.eos_id = ids["bos_token"], ids["sep_token"]
        self.pad_id, self.unk_id = ids["pad_token"], ids["unk_token"]
        self.mask_id = ids["mask_token"]
        self.mask_token = self._pieces[self.mask_id]
        named = control_tokens(config) | {*_SPECIAL}
        self._special = {*ids.values(), *(self._entries[t] for t in named if t in self._entries)}
        self._language_ids = _languages(directory, config)
        self.languages = tuple(self._language_ids)
        self._cache: dict[str, tuple[str, ...]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids, the largest plus one."""
        return max(self._pieces) + 1

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
        """Splits text into pieces; the last piece of a word ends in `</w>`.

        Args:
            text: any text.
            language: a code such as `en`, which the rules for words depend on.
            pretokenized: whether words are what blanks part, with their case and accents.
            mask: whether `mask_token` in the text becomes that token.

        Raises:
            DependencyError: a package that splits words is not installed.
            InvalidInputError: the text is not valid Unicode, or its language needs a segmenter
                that there is none of.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"text: expected valid Unicode, found {error}") from None
        parts = text.split(self.mask_token) if mask else [text]
        found = self._part(parts[0], language, pretokenized=pretokenized)
        for part in parts[1:]:
            found += [self.mask_token, *self._part(part, language, pretokenized=pretokenized)]
        return found

    def _part(self, text: str, language: str, *, pretokenized: bool) -> list[str]:
        if not text:
            return []
        words = text.split() if pretokenized else self._words.split(text, language)
        return [piece for word in words for piece in self._bpe(word)]

    def encode(
        self, text: str, language: str = "en", *, pretokenized: bool = False, mask: bool = False
    ) -> list[int]:
        """Returns `<s>`, the ids of the text's pieces, and `</s>`.

        Arguments and errors are those of `tokenize`.
        """
        pieces = self.tokenize(text, language, pretokenized=pretokenized, mask=mask)
        return [self.bos_id, *self.pieces_to_ids(pieces, mask=mask), self.eos_id]

    def pieces_to_ids(self, pieces: Iterable[str], *, mask: bool = False) -> list[int]:
        """Returns the id of each piece; `unk_id` for those that the vocabulary lacks.

        Args:
            pieces: pieces of a text.
            mask: whether `mask_token` is that token; a control token is no piece otherwise.
        """
        found = (self._entries.get(piece, self.unk_id) for piece in pieces)
        kept = {self.mask_id} if mask else set()
        hidden = self._special - kept
        return [self.unk_id if index in hidden else index for index in found]

    def ids_to_pieces(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> list[str]:
        """Returns the piece of each id.

        Raises:
            InvalidInputError: an id is not one of the vocabulary's.
        """
        found = []
        for index in ids:
            if index not in self._pieces:
                raise InvalidInputError(
                    f"ids: expected ids from 0 to {self.vocab_size - 1}, found {index!r}"
                )
            if not (skip_special_tokens and index in self._special):
                found.append(self._pieces[index])
        return found

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Joins ids into text: words with a blank between them, as they were tokenized.

        Raises:
            InvalidInputError: an id is not one of the vocabulary's.
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
            found = self._cache[word] = tuple(self._merged([*word[:-1], word[-1] + _END]))
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
    for number, pair in enumerate(pairs, 1):
        if len(pair) < 2:
            raise BundleError(f"{path}: expected two pieces in line {number}, found {pair}")
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


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
