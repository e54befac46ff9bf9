"""The tokenizer of a bundle against transformers', on the files of its checkpoint.

Refuses to know models. Compares no text that holds a control token: there, ours differs on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import M2M100Tokenizer

from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["ReferenceTokenizer"]


class ReferenceTokenizer:
    """transformers' tokenizer of a checkpoint, without subword sampling."""

    def __init__(self, folder: Path) -> None:
        """Reads the tokenizer files of a checkpoint's folder."""
        self._theirs = M2M100Tokenizer.from_pretrained(folder, sp_model_kwargs={})

    def encode(self, text: str, source_lang: str) -> list[int]:
        """Returns what the encoder reads for a text."""
        self._theirs.src_lang = source_lang
        ids: list[int] = self._theirs(text).input_ids
        return ids

    def language_id(self, code: str) -> int:
        """Returns the id of a language's token."""
        index: int = self._theirs.get_lang_id(code)
        return index

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
        for text, code in self._texts(samples):
            expected, found = self.encode(text, code), ours.encode(text, code)
            if found != expected:
                yield f"{text!r}: expected transformers' ids {expected}, found {found}"
                continue
            decoded = self._theirs.decode(expected, skip_special_tokens=True)
            if ours.decode(expected) != decoded:
                yield (
                    f"{text!r}: expected transformers' text {decoded!r}, "
                    f"found {ours.decode(expected)!r}"
                )

    def _texts(self, samples: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yields the samples, and texts with each token that the checkpoint's files add."""
        yield from ((text, code) for code, text in samples.items())
        code, text = next(iter(samples.items()))
        for token in self._theirs.added_tokens_decoder.values():
            if not token.special:
                yield f"{text} {token.content}{text}", code
