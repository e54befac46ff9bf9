"""The tokenizer files of NLLB-200: a SentencePiece model without `vocab.json`.

Knows how ids follow from the numbers of the pieces, where tokenizer.json has the ids of added
tokens, and the blanks that transformers 5 keeps. Refuses to know languages and sequences.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.config import read_json
from m2m100_onnx.errors import BundleError
from m2m100_onnx.process import native_call
from m2m100_onnx.text.vocabulary import Vocabulary, open_model

__all__ = ["BLANK", "JSON_FILE", "NllbVocabulary", "join_pieces", "with_added_tokens"]

JSON_FILE: Final = "tokenizer.json"

_CONTROL: Final = ("<s>", "<pad>", "</s>", "<unk>")
_UNNUMBERED: Final = ["<unk>", "<s>", "</s>"]
BLANK: Final = "▁"
"""What SentencePiece writes for a blank."""


class NllbVocabulary(Vocabulary):
    """Gives each piece its number + 1, after the control tokens `<s> <pad> </s> <unk>`.

    Splits and joins as transformers 5 does: a blank at the end of a text is a piece. SentencePiece,
    and with it the slow tokenizer of transformers 4, drops it.
    """

    def __init__(self, model: bytes, sampling: Mapping[str, Any]) -> None:
        """Reads a SentencePiece model.

        Raises:
            ValueError: SentencePiece cannot read the model, or it numbers `<unk>`, `<s>` and `</s>`
                otherwise than 0, 1 and 2.
        """
        processor = open_model(model, {})
        pieces: list[str] = processor.id_to_piece(list(range(processor.get_piece_size())))
        if pieces[:3] != _UNNUMBERED:
            raise ValueError(f"expected the pieces to start with {_UNNUMBERED}, found {pieces[:3]}")
        names = (*_CONTROL, *pieces[3:])
        super().__init__(model, {name: index for index, name in enumerate(names)}, sampling)

    def split(self, text: str) -> list[str]:
        """Splits a text into pieces; a run of characters outside the model is one piece."""
        pieces = super().split(text)
        with native_call():
            # Between two letters no blank is dropped.
            ends_blank = self._sp.normalize(f"a{text}a").endswith(f"{BLANK}a")
        return [*pieces, BLANK] if ends_blank else pieces

    def text(self, pieces: Iterable[str], special: Container[str]) -> str:
        """Joins pieces and special tokens into a text."""
        return join_pieces(pieces, special)


def join_pieces(pieces: Iterable[str], special: Container[str]) -> str:
    """Joins pieces and special tokens into a text, as transformers 5 does for NLLB.

    The blank at the start goes; one at the end stays.
    """
    first, *others = [*pieces] or [""]
    start = first if first in special else first.replace(BLANK, "")
    return start + "".join(p if p in special else p.replace(BLANK, " ") for p in others)


def with_added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns tokenizer_config.json with the added tokens that tokenizer.json alone may have.

    Raises:
        BundleError: the file is broken.
    """
    path = folder / JSON_FILE
    if config.get("added_tokens_decoder") or not path.exists():
        return dict(config)
    entries = read_json(path).get("added_tokens", [])
    try:
        decoder = {str(entry["id"]): entry for entry in entries}
    except (TypeError, KeyError):
        raise BundleError(f"{path}: expected added_tokens with an id each, found others") from None
    return {**config, "added_tokens_decoder": decoder}
