"""The tokenizer of a bundle against transformers', on the files of its checkpoint.

Refuses to know models. Compares no text that holds a control token: there, ours differs on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import M2M100Tokenizer

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["ReferenceTokenizer", "reference_tokenizer"]

_IS_4 = transformers.__version__.startswith("4.")


class ReferenceTokenizer:
    """transformers' tokenizer of a checkpoint, without subword sampling.

    transformers has no class for SMaLL-100, and its class for M2M100 refuses languages that
    fine-tuning added. It has the ids of both, so the frames are laid here.
    """

    def __init__(self, folder: Path, family: str) -> None:
        """Reads the tokenizer files of a checkpoint's folder.

        Args:
            folder: the checkpoint.
            family: a name in `FAMILIES`.
        """
        self._theirs = self._open(folder)
        self._family = FAMILIES[family]

    def _open(self, folder: Path) -> Any:
        return M2M100Tokenizer.from_pretrained(folder, sp_model_kwargs={})

    def encode(self, text: str, source_lang: str, target_lang: str) -> list[int]:
        """Returns what the encoder reads for a text."""
        read = "target_lang" if "target_lang" in self._family.source_frame else "source_lang"
        language = {"source_lang": source_lang, "target_lang": target_lang}[read]
        pieces: list[int] = self._theirs(text, add_special_tokens=False).input_ids
        return [self.language_id(language), *pieces, self._theirs.eos_token_id]

    def forced_id(self, target_lang: str) -> int | None:
        """Returns the id that the decoder starts with by force, None where it is free."""
        return self.language_id(target_lang) if "target_lang" in self._family.prompt else None

    def language_id(self, code: str) -> int:
        """Returns the id of a language's token."""
        if code in self._theirs.lang_code_to_id:
            index: int = self._theirs.get_lang_id(code)
            return index
        added: dict[str, int] = self._theirs.get_added_vocab()
        return added[self._family.language_token.format(code)]

    def differences(self, ours: Tokenizer, samples: Mapping[str, str]) -> Iterator[str]:
        """Yields what our tokenizer does otherwise, in words.

        Args:
            ours: a tokenizer without subword sampling.
            samples: a text for each of some languages.
        """
        for code in ours.languages:
            if ours.language_id(code) != self.language_id(code):
                yield (
                    f"language {code}: expected transformers' id {self.language_id(code)}, "
                    f"found {ours.language_id(code)}"
                )
        for text, code in self._texts(ours, samples):
            expected, found = self.encode(text, code, code), ours.encode(text, code, code)
            if found != expected:
                yield f"{text!r}: expected transformers' ids {expected}, found {found}"
                continue
            decoded = self._decode(expected)
            if not _same(ours.decode(expected), decoded):
                yield (
                    f"{text!r}: expected transformers' text {decoded!r}, "
                    f"found {ours.decode(expected)!r}"
                )

    def _decode(self, ids: list[int]) -> str:
        # transformers 5 takes no language token for special that the files do not list.
        text: str = self._theirs.decode(ids[1:-1], skip_special_tokens=True)
        return text

    def _texts(self, ours: Tokenizer, samples: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yields the samples, and texts with each token that a text may hold."""
        yield from ((text, code) for code, text in samples.items())
        code, text = next(iter(samples.items()))
        roles = {str(token) for token in self._theirs.special_tokens_map.values()}
        control = roles | {self._family.language_token.format(code) for code in ours.all_languages}
        for token in self._theirs.added_tokens_decoder.values():
            if token.content not in control:
                yield f"{text} {token.content}{text}", code


def _same(ours: str, theirs: str) -> bool:
    """Whether two texts are equal; transformers 4 puts blanks around added tokens of its own."""
    if _IS_4:
        ours, theirs = ("".join(text.split()) for text in (ours, theirs))
    return ours == theirs


class NllbReference(ReferenceTokenizer):
    """transformers' tokenizer of an NLLB checkpoint, which lays its own frames.

    With transformers 4 it is the fast one: the slow one drops a blank at the end of a text.
    """

    def _open(self, folder: Path) -> Any:
        kind = getattr(transformers, "NllbTokenizerFast", transformers.NllbTokenizer)
        return kind.from_pretrained(folder)

    def encode(self, text: str, source_lang: str, target_lang: str) -> list[int]:
        """Returns what the encoder reads for a text."""
        del target_lang
        self._theirs.src_lang = source_lang
        ids: list[int] = self._theirs(text).input_ids
        return ids

    def language_id(self, code: str) -> int:
        """Returns the id of a language's token."""
        index: int = self._theirs.convert_tokens_to_ids(code)
        return index

    def _decode(self, ids: list[int]) -> str:
        text: str = self._theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def reference_tokenizer(folder: Path, family: str) -> ReferenceTokenizer:
    """Returns transformers' tokenizer of a checkpoint of a family."""
    nllb = not FAMILIES[family].has_vocab_file
    return (NllbReference if nllb else ReferenceTokenizer)(folder, family)
