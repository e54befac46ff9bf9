"""Text to token ids and back, and the language tokens of the M2M100 family.

Refuses to know models, batches, padding, length limits and which language to translate to.

The ids are those of transformers' `M2M100Tokenizer`, with one deliberate difference: **user text
never becomes a control token.** There, `</s>`, `<pad>` or `__fr__` inside a sentence turns into the
control token, so whoever writes the text can end it early or change its language. Here it stays the
characters it is (the policy of tiktoken); control tokens come from arguments alone.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from m2m100_onnx.bundle import read_json
from m2m100_onnx.errors import BundleError, InvalidInputError, UnknownLanguageError
from m2m100_onnx.tokenizer_files import (
    CONFIG_FILE,
    LANGUAGE_CODES,
    PIECES_FILE,
    VOCAB_FILE,
    added_tokens,
    read_vocabulary,
    setting,
    special_tokens,
    write_table,
)

__all__ = ["LANGUAGE_CODES", "Tokenizer"]

# Checkpoints saved by transformers before 4.45 may ask for this clean-up of the decoded text.
_CLEAN_UP: Final = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {tail}", tail) for tail in ("n't", "'m", "'s", "'ve", "'re")),
)


class Tokenizer:
    """Turns text into exactly the ids the checkpoint was trained with, and ids back into text.

    Never changes after construction: one instance may serve many threads. A pickled copy needs no
    folder. With sampling enabled `encode` is random on purpose, otherwise a pure function.

    Ids are laid out as `[vocab.json, one per language code, made-up words]`. The made-up words are
    rows of the embedding that stand for nothing; they decode as the unknown token.

    Attributes:
        bos_id: id of `<s>`, which the model never uses.
        pad_id: id of `<pad>`.
        eos_id: id of `</s>`; it ends every sequence and starts the decoder.
        unk_id: id of `<unk>`, for pieces outside the vocabulary.
        vocab_size: entries of `vocab.json` + language codes + made-up words, the rows the model's
            embedding is expected to have. (transformers' `vocab_size` is `vocab.json` alone.)
        all_languages: every code that has a token, in id order.
        languages: the codes that may be asked for: `trained_languages` if given, else all.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        sp_model_kwargs: Mapping[str, object] | None = None,
        language_codes: str | None = None,
        num_madeup_words: int | None = None,
        embedding_rows: int | None = None,
        trained_languages: Sequence[str] | None = None,
    ) -> None:
        """Reads the tokenizer files of a bundle or checkpoint folder.

        The first three settings, left at `None`, come from `tokenizer_config.json`; where that is
        silent or absent they are no sampling, `"m2m100"` and 8.

        Args:
            directory: a folder with `vocab.json` and `sentencepiece.bpe.model`.
            sp_model_kwargs: subword sampling: `enable_sampling`, `nbest_size`, `alpha`, with
                SentencePiece's meaning.
            language_codes: a family in `LANGUAGE_CODES`.
            num_madeup_words: embedding rows after the language tokens.
            embedding_rows: the model's vocabulary size, which then settles `num_madeup_words`.
            trained_languages: the codes this checkpoint can really translate; the others keep
                their ids and are refused by `language_id`. `None` is every code.

        Raises:
            BundleError: a file is missing or broken, or the files do not belong together.
            InvalidInputError: an argument is out of range.
        """
        self._folder = folder = Path(directory)
        at = folder / CONFIG_FILE
        config = read_json(at) if at.exists() else {}
        setting(at, config, "tokenizer_class")
        sampling = setting(at, config, "sp_model_kwargs", sp_model_kwargs)
        self._clean_up: bool = setting(at, config, "clean_up_tokenization_spaces")
        codes = LANGUAGE_CODES[setting(at, config, "language_codes", language_codes)]
        madeup: int = setting(at, config, "num_madeup_words", num_madeup_words)

        self._vocabulary = read_vocabulary(folder, config, sampling)
        size = len(self._vocabulary)
        if embedding_rows is not None:
            madeup = embedding_rows - size - len(codes)
            if madeup < 0:
                raise BundleError(
                    f"{folder / VOCAB_FILE}: {size} entries and {len(codes)} languages "
                    f"are more than the model's vocabulary of {embedding_rows}"
                )
        special = special_tokens(folder / VOCAB_FILE, config, self._vocabulary)
        self._language_ids = {code: size + n for n, code in enumerate(codes)}
        self._language_codes = {index: code for code, index in self._language_ids.items()}
        tokens = {f"__{code}__": index for code, index in self._language_ids.items()}
        roles = dict(zip(special, self._vocabulary.ids(special.values(), -1), strict=True))
        self._vocabulary.add(tokens)

        self.all_languages: Final = codes
        self.languages: Final = codes if trained_languages is None else tuple(trained_languages)
        if not self.languages or set(self.languages) - set(codes):
            raise InvalidInputError(f"trained_languages {trained_languages!r} are not in {codes}")
        added = added_tokens(at, config, self._vocabulary)
        self._reserved = frozenset({*special.values(), *tokens, *added})
        self._unknown: str = special["unk"]

        self.bos_id: Final = roles["bos"]
        self.pad_id: Final = roles["pad"]
        self.eos_id: Final = roles["eos"]
        self.unk_id: Final = roles["unk"]
        self.vocab_size: Final = size + len(codes) + madeup
        self._reserved_ids = frozenset(self.pieces_to_ids(self._reserved))

    def __len__(self) -> int:
        """Counts the ids but for the made-up words, as transformers does."""
        return len(self._vocabulary) + len(self._language_ids)

    def encode(self, text: str, source_lang: str) -> list[int]:
        """Returns the encoder's input for a text: `[source_lang, *pieces, eos]`.

        Nothing is stripped or truncated but by SentencePiece's own normalization. Raises what
        `tokenize` and `language_id` raise.
        """
        return self.build_inputs(self.pieces_to_ids(self.tokenize(text)), source_lang)

    def encode_target(self, text: str, target_lang: str) -> list[int]:
        """Returns a reference translation as labels: `[target_lang, *pieces, eos]`."""
        return self.encode(text, target_lang)

    def build_inputs(self, ids: Iterable[int], language: str) -> list[int]:
        """Returns `[language, *ids, eos]`, the frame of every source and target sequence."""
        return [self.language_id(language), *self._checked(ids), self.eos_id]

    def tokenize(self, text: str) -> list[str]:
        """Splits a text into pieces, none of which is ever a special or language token.

        Raises:
            InvalidInputError: `text` is no `str`, or holds a lone surrogate.
        """
        if not isinstance(text, str):
            raise InvalidInputError(f"text must be a str, found {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at "
                f"character {error.start} in {text[max(0, error.start - 20) : error.start + 20]!a}"
            ) from None
        pieces = self._vocabulary.split(text)
        if self._reserved.isdisjoint(pieces):
            return pieces
        # A run of unknown characters comes back as one piece, and a model may list "__fr__" as a
        # piece: looked up as it is, either would become the control token.
        return [part for p in pieces for part in (p if p in self._reserved else [p])]

    def pieces_to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Looks up pieces, special and language tokens; what has no id becomes `unk_id`.

        Trusts its caller: the piece `"</s>"` gives `eos_id`. `tokenize` never returns that piece.
        """
        return self._vocabulary.ids(pieces, self.unk_id)

    def ids_to_pieces(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> list[str]:
        """Looks up the piece of each id; a made-up word is the unknown token.

        Args:
            ids: integers, of Python or numpy, in `[0, vocab_size)`.
            skip_special_tokens: leave out special and language tokens. As in transformers,
                `unk_id` is special and (since 5) made-up words are not.

        Raises:
            InvalidInputError: an id is no integer or out of range (transformers: `<unk>`).
        """
        skipped = self._reserved_ids if skip_special_tokens else ()
        kept = [index for index in self._checked(ids) if index not in skipped]
        return self._vocabulary.pieces(kept, self._unknown)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Joins ids into text, without blanks at either end; see `ids_to_pieces`.

        With `skip_special_tokens=False` special and language tokens are written as they are, with
        no blank added (as transformers 5; 4 puts one after a language token).
        """
        pieces = self.ids_to_pieces(ids, skip_special_tokens=skip_special_tokens)
        runs = groupby(pieces, key=self._reserved.__contains__)
        join = self._vocabulary.join
        parts = ("".join(run) if special else join(run) for special, run in runs)
        text = "".join(parts).strip()
        for old, new in _CLEAN_UP if self._clean_up else ():
            text = text.replace(old, new)
        return text

    def language_id(self, code: str) -> int:
        """Returns the id of a language's token.

        Raises:
            UnknownLanguageError: the code has no token, or is not one of `languages`; near matches
                are in the message.
        """
        if code not in self.languages:
            raise UnknownLanguageError(code, self.languages, known=self.all_languages)
        return self._language_ids[code]

    def language_of(self, index: int) -> str | None:
        """Returns the code whose token has this id, trained or not, else None."""
        return self._language_codes.get(index)

    def special_tokens_mask(
        self, ids: Iterable[int], *, already_has_special_tokens: bool = True
    ) -> list[int]:
        """Marks special and language tokens with 1, the rest with 0.

        Args:
            ids: a sequence as `encode` returns it. `unk_id` counts as special, as in transformers.
            already_has_special_tokens: if false, `ids` are pieces alone and the mask, two longer,
                is that of `build_inputs(ids, language)`.

        Raises:
            InvalidInputError: see `ids_to_pieces`.
        """
        checked = self._checked(ids)
        if not already_has_special_tokens:
            return [1, *[0] * len(checked), 1]
        return [int(index in self._reserved_ids) for index in checked]

    def save_vocabulary(
        self, directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[Path, Path]:
        """Writes `vocab.json` and `sentencepiece.bpe.model`, byte for byte as transformers does.

        With a `filename_prefix` they are called `{filename_prefix}-vocab.json` and so on.

        Raises:
            InvalidInputError: `directory` is not an existing folder.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise InvalidInputError(f"{folder}: expected an existing folder to save to")
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab, pieces = folder / (prefix + VOCAB_FILE), folder / (prefix + PIECES_FILE)
        vocab.write_bytes(json.dumps(self._vocabulary.entries(), indent=2).encode("ascii"))
        pieces.write_bytes(self._vocabulary.model)
        return vocab, pieces

    def write_table(self) -> None:
        """Writes `vocabulary.npz` beside the files this was read from; the next reads it sooner."""
        write_table(self._folder, self._vocabulary)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        try:
            checked = [operator.index(index) for index in ids]
        except TypeError as error:
            raise InvalidInputError(f"ids must be a flat sequence of integers: {error}") from None
        for index in checked:
            if not 0 <= index < self.vocab_size:
                raise InvalidInputError(f"id {index} is outside [0, {self.vocab_size})")
        return checked
