"""Text to token ids and back, and the language tokens of the M2M100 families.

Refuses to know models, batches, padding and length limits.

The ids are those of transformers' `M2M100Tokenizer`, with one deliberate difference: **user text
never becomes a control or language token.** In transformers, `</s>`, `<pad>` or `__fr__` inside a
sentence becomes the control token, so the author of a text can end it early or change its language.
Here a text keeps its characters, as in tiktoken. Control tokens come from arguments alone. Tokens
that fine-tuning added for its texts, such as `<br>` or `{name}`, are found in a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.families import FAMILIES, Family
from m2m100_onnx.errors import BundleError, InvalidInputError
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
from m2m100_onnx.text.files import (
    VOCAB_FILE,
    read_config,
    read_family,
    read_pieces,
    read_vocabulary,
    setting,
    special_tokens,
    write_table,
)
from m2m100_onnx.text.languages import resolve_language, unknown_language
from m2m100_onnx.text.nllb import with_added_tokens
from m2m100_onnx.text.nllb_json import JsonVocabulary
from m2m100_onnx.text.vocabulary import Vocabulary

__all__ = ["Tokenizer"]


class Tokenizer:
    """Turns text into the ids that the checkpoint was trained with, and ids back into text.

    An instance never changes, and many threads may share it. A pickled copy needs no folder.
    `encode` is a pure function unless subword sampling is on, which makes it random.

    Ids are laid out as `[vocab.json, one per language code, made-up words, added tokens]`. Made-up
    words are rows of the embedding that stand for no token; they decode as the unknown token. An
    added token that is spelled as a language token is a language.

    Attributes:
        bos_id: id of `<s>`, which the model never uses.
        pad_id: id of `<pad>`.
        eos_id: id of `</s>`, which ends every sequence.
        unk_id: id of `<unk>`, which stands for pieces outside the vocabulary.
        family: the name of the family, one of `FAMILIES`.
        vocab_size: the number of rows of the model's embedding: `vocab.json` + language codes +
            made-up words + added tokens. transformers' `vocab_size` is `vocab.json` alone.
        all_languages: every code that has a token, in the order of the ids.
        languages: the codes that `language_id` accepts: `trained_languages` if given, else all.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        sp_model_kwargs: Mapping[str, object] | None = None,
        family: str | None = None,
        num_madeup_words: int | None = None,
        embedding_rows: int | None = None,
        trained_languages: Sequence[str] | None = None,
    ) -> None:
        """Reads the tokenizer files of a bundle or checkpoint folder.

        Args:
            directory: a folder with `sentencepiece.bpe.model` and `vocab.json`; for NLLB with
                `sentencepiece.bpe.model` or `tokenizer.json`.
            sp_model_kwargs: subword sampling: SentencePiece's `enable_sampling`, `nbest_size` and
                `alpha`. None takes the value of `tokenizer_config.json`, else no sampling.
            family: a name in `FAMILIES`. None takes what `tokenizer_config.json` tells, else
                `"m2m100"`.
            num_madeup_words: embedding rows after the language tokens. None takes the value of
                `tokenizer_config.json`, else the family's.
            embedding_rows: rows of the model's embedding, which decide `num_madeup_words`.
            trained_languages: the codes that this checkpoint translates. The others keep their ids,
                and `language_id` refuses them. None means every code.

        Raises:
            BundleError: a file is missing or broken, or the files do not belong together.
            DependencyError: tokenizer.json is to be read, and tokenizers is not installed.
            InvalidInputError: an argument is out of range.
        """
        self._folder = folder = Path(directory)
        at = folder / CONFIG_FILE
        config = read_config(folder)
        self.family: Final = read_family(at, config, family)
        if not FAMILIES[self.family].has_vocab_file:
            config = with_added_tokens(folder, config)
        sampling = setting(at, config, "sp_model_kwargs", sp_model_kwargs)
        self._clean_up: bool = setting(at, config, "clean_up_tokenization_spaces")
        self._family: Family = FAMILIES[self.family]
        madeup: int | None = setting(at, config, "num_madeup_words", num_madeup_words)
        setting(at, config, "added_tokens_decoder")

        read = read_vocabulary if self._family.has_vocab_file else read_pieces
        self._vocabulary: Vocabulary | JsonVocabulary = read(folder, config, sampling)
        special = special_tokens(folder / VOCAB_FILE, config, self._vocabulary)
        roles = dict(zip(special, self._vocabulary.ids(special.values(), -1), strict=True))
        self.bos_id: Final = roles["bos"]
        self.pad_id: Final = roles["pad"]
        self.eos_id: Final = roles["eos"]
        self.unk_id: Final = roles["unk"]
        self._unknown: str = special["unk"]

        size, codes = len(self._vocabulary), self._listed_languages(config)
        self._language_ids = {code: size + n for n, code in enumerate(codes)}
        listed = (*map(self._spell, codes), *(self._family.after_languages if codes else ()))
        self._vocabulary.add({token: size + n for n, token in enumerate(listed)})
        added = added_tokens(folder, config, self._vocabulary)
        self._vocabulary.add({token.content: token.index for token in added.values()})
        self._language_ids |= self._added_languages(added)
        self.all_languages: Final = tuple(self._language_ids)
        self.languages: Final = (
            self.all_languages if trained_languages is None else tuple(trained_languages)
        )
        if not self.languages or set(self.languages) - set(self.all_languages):
            raise InvalidInputError(
                f"trained_languages: expected some of {self.all_languages}, "
                f"found {trained_languages!r}"
            )
        self._length = size + sum(index >= size for index in self._vocabulary.added)
        self.vocab_size: Final = self._count_rows(madeup, embedding_rows)

        # Text never becomes one of the control tokens, and decoded text leaves out special ones.
        spelled = map(self._spell, self._language_ids)
        self._control = frozenset({*special.values(), *control_tokens(config), *spelled})
        marked = {token.content for token in added.values() if token.special}
        self._special = self._control | marked
        self._special_ids = frozenset(self.pieces_to_ids(self._special))
        self._added = {name: token for name, token in added.items() if name not in self._control}
        self._pattern = pattern_of(self._added)

    def _spell(self, code: str) -> str:
        return self._family.language_token.format(code)

    def _listed_languages(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the languages whose ids follow from their order."""
        if self._family.has_vocab_file:
            return self._family.languages
        if config.get("added_tokens_decoder"):
            return ()  # Their ids stand there.
        named = config.get("extra_special_tokens") or config.get("additional_special_tokens")
        return tuple(token for token in named or () if isinstance(token, str)) or (
            self._family.languages
        )

    def _added_languages(self, added: Mapping[str, AddedToken]) -> dict[str, int]:
        """Returns the ids of languages that the family's list lacks, in the order of the ids."""
        spelled = re.compile(self._spell(self._family.code))
        return {
            match[1]: token.index
            for token in sorted(added.values(), key=lambda token: token.index)
            if (match := spelled.fullmatch(token.content)) and match[1] not in self._language_ids
        }

    def _count_rows(self, madeup: int | None, embedding_rows: int | None) -> int:
        """Returns the number of ids, made-up words included."""
        last = max(self._vocabulary.added, default=-1)
        if embedding_rows is None:
            listed = len(self._vocabulary) + len(self._language_ids)
            return max(listed + (self._family.madeup_words if madeup is None else madeup), last + 1)
        if last >= embedding_rows:
            (token,) = self._vocabulary.pieces([last], "")
            raise BundleError(
                f"{self._folder}: expected an embedding row for each token, found "
                f"{embedding_rows} rows and token {token!r} with id {last}; {VOCAB_FILE} has "
                f"{len(self._vocabulary)} entries and there are {len(self._language_ids)} languages"
            )
        return embedding_rows

    def __len__(self) -> int:
        """Counts the ids without made-up words, as transformers does."""
        return self._length

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of special tokens and language tokens, which are no words of a text."""
        return self._special_ids

    def encode(self, text: str, source_lang: str, target_lang: str | None = None) -> list[int]:
        """Returns what the encoder reads for a text: `[source_lang, *pieces, eos]` for M2M100.

        Nothing is stripped or cut, except by SentencePiece's own normalization.

        Args:
            text: the text.
            source_lang: its language.
            target_lang: the language to translate into. SMaLL-100's encoder reads it in place of
                the source language.

        Raises:
            InvalidInputError: see `tokenize`; or the family needs `target_lang`, and it is None.
            UnknownLanguageError: see `language_id`.
        """
        parts = {
            "text": self.pieces_to_ids(self.tokenize(text)),
            "source_lang": [self.language_id(source_lang)],
            "eos": [self.eos_id],
        }
        if target_lang is not None:
            parts["target_lang"] = [self.language_id(target_lang)]
        elif "target_lang" in self._family.source_frame:
            raise InvalidInputError(
                "target_lang: expected a language, since the encoder of "
                f"{self.family} reads it, found None"
            )
        return [index for part in self._family.source_frame for index in parts[part]]

    def has_text(self, ids: Sequence[int]) -> bool:
        """Whether ids that `encode` returned hold more than control tokens."""
        return self.count_pieces(ids) > 0

    def pieces_within(self, ids: Sequence[int]) -> slice:
        """Returns where the pieces of ids that `encode` returned lie, between control tokens."""
        start = self._family.source_frame.index("text")
        return slice(start, start + self.count_pieces(ids))

    def count_pieces(self, ids: Sequence[int]) -> int:
        """Returns how many of the ids that `encode` returned are no control tokens around them."""
        return len(ids) + 1 - len(self._family.source_frame)

    def truncate(self, ids: Sequence[int], limit: int) -> list[int]:
        """Cuts the text of ids that `encode` returned, so that `limit` ids are left.

        Control tokens stay.
        """
        frame = self._family.source_frame
        behind = len(frame) - 1 - frame.index("text")
        return [*ids[: limit - behind], *ids[len(ids) - behind :]] if len(ids) > limit else [*ids]

    def build_prompt(self, target_lang: str, decoder_start_id: int) -> list[int]:
        """Returns the decoder's first tokens: `[decoder_start, target_lang]` for M2M100.

        Args:
            target_lang: the language to translate into.
            decoder_start_id: the model's `decoder_start_token_id`.

        Raises:
            UnknownLanguageError: see `language_id`.
        """
        # A family without a language in its prompt refuses an unknown one too.
        ids = {"decoder_start": decoder_start_id, "target_lang": self.language_id(target_lang)}
        return [ids[part] for part in self._family.prompt]

    def tokenize(self, text: str) -> list[str]:
        """Splits a text into pieces and added tokens, none of which is a control or language token.

        Raises:
            InvalidInputError: `text` is no `str`, or holds a lone surrogate.
        """
        refuse_no_text(text)
        if self._pattern is None:
            return self._split(text)
        found: list[str] = []
        for part in split_at(text, self._added, self._pattern):
            found += [part] if part in self._added else self._split(part)
        return found

    def _split(self, text: str) -> list[str]:
        """Splits a text without added tokens into pieces."""
        pieces = self._vocabulary.split(text)
        if self._control.isdisjoint(pieces):
            return pieces
        # SentencePiece returns a run of unknown characters as one piece, and a model may have
        # "__fr__" as a piece. Single characters never are control tokens.
        return [part for p in pieces for part in (p if p in self._control else [p])]

    def pieces_to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Looks up pieces, special tokens and language tokens; anything else becomes `unk_id`.

        The piece `"</s>"` becomes `eos_id`. `tokenize` never returns that piece.
        """
        return self._vocabulary.ids(pieces, self.unk_id)

    def ids_to_pieces(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> list[str]:
        """Looks up the piece of each id; a made-up word is the unknown token.

        Args:
            ids: Python or numpy integers in `[0, vocab_size)`.
            skip_special_tokens: leaves out special tokens and language tokens. As in transformers,
                `unk_id` is special and (since 5) made-up words are not.

        Raises:
            InvalidInputError: an id is no integer, or out of range (transformers: `<unk>`).
        """
        skipped = self._special_ids if skip_special_tokens else ()
        kept = [index for index in checked_ids(ids, self.vocab_size) if index not in skipped]
        return self._vocabulary.pieces(kept, self._unknown)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Joins ids into text, without blanks at either end.

        With `skip_special_tokens=False` special and language tokens are part of the text, with no
        blank around them (as in transformers 5; 4 puts one after a language token). Arguments and
        errors are those of `ids_to_pieces`.
        """
        pieces = self.ids_to_pieces(ids, skip_special_tokens=skip_special_tokens)
        text = self._vocabulary.text(pieces, self._special)
        return clean_up(text) if self._clean_up else text

    def settled(self, text: str) -> str:
        """Returns the part of a text, decoded from a prefix, that more tokens leave as it is.

        Only the removal of blanks, `clean_up_tokenization_spaces`, looks back: to the last one.
        """
        return text[: max(text.rfind(" "), 0)] if self._clean_up else text

    def language_id(self, name: str) -> int:
        """Returns the id of a language's token.

        Args:
            name: see `resolve_language`.

        Raises:
            UnknownLanguageError: see `resolve_language`.
        """
        return self._language_ids[self.resolve_language(name)]

    def resolve_language(self, name: str) -> str:
        """Returns the code of a language.

        Args:
            name: one of `languages`. NLLB's codes name a script, so there a BCP 47 tag (`en-US`,
                `zh-Hant`), a code of ISO 639 and an English name serve as well, if just one of
                the checkpoint's codes is meant.

        Raises:
            UnknownLanguageError: there is no such language, the checkpoint was not trained on it,
                or the name may mean several; the message has near matches.
        """
        if name in self.languages:
            return name
        code = resolve_language(name, self.all_languages)
        if code not in self.languages:
            raise unknown_language(code or name, self.languages, self.all_languages)
        return code

    def write_table(self, folder: Path | None = None) -> None:
        """Writes `vocabulary.npz` into a folder, so that the next tokenizer of it loads faster.

        The family of NLLB has no `vocab.json` to read, and so no table.

        Args:
            folder: holds copies of this tokenizer's files; by default the folder of the files.

        Raises:
            OSError: the folder cannot be written.
        """
        if isinstance(self._vocabulary, Vocabulary) and self._family.has_vocab_file:
            write_table(folder or self._folder, self._vocabulary)
