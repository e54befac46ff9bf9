"""The vocabulary of NLLB's `sentencepiece.bpe.model`, which has no `vocab.json` beside it.

Knows how ids follow from the numbers of the pieces, and the blanks that transformers 5 keeps.
Refuses to know languages and sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sentencepiece

from m2m100_onnx.process import native_call
from m2m100_onnx.text.vocabulary import Vocabulary

__all__ = ["NllbVocabulary"]

_CONTROL = ("<s>", "<pad>", "</s>", "<unk>")


class NllbVocabulary(Vocabulary):
    """Gives each piece its number + 1, after the control tokens `<s> <pad> </s> <unk>`."""

    def __init__(self, model: bytes, sampling: Mapping[str, Any]) -> None:
        """Reads a SentencePiece model.

        Raises:
            ValueError: SentencePiece cannot read the model.
        """
        try:
            sp: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        pieces = sp.id_to_piece(list(range(3, sp.get_piece_size())))
        names = (*_CONTROL, *pieces)
        super().__init__(model, {name: index for index, name in enumerate(names)}, sampling)

    def split(self, text: str) -> list[str]:
        """Splits a text into pieces; a blank at the end is a piece, as in transformers 5."""
        pieces = super().split(text)
        with native_call():
            ends_blank = self._sp.normalize(f"a{text}a").endswith("▁a")
        return [*pieces, "▁"] if ends_blank else pieces
