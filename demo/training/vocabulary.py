"""The demo model's languages, token ids and text encoding.

Knows how pieces and languages become ids; knows nothing of corpora or networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray
from transformers import M2M100Tokenizer

LANGS = ("en", "de", "fr", "es", "ru", "zh")
BOS, PAD, EOS, UNK = 0, 1, 2, 3
MADE_UP_WORDS = 8
"""Number of unused rows that M2M100 has after the language tokens."""

VOCAB_FILE = "vocab.json"
SPM_FILE = "sentencepiece.bpe.model"


def piece_vocabulary(processor: spm.SentencePieceProcessor) -> dict[str, int]:
    """Numbers the pieces as M2M100 does: four control tokens, then SentencePiece's own order.

    SentencePiece's ids 0 to 2 are its control tokens, so its id i >= 3 becomes i + 1 here.
    """
    vocab = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
    for index in range(3, processor.get_piece_size()):
        vocab[processor.id_to_piece(index)] = len(vocab)
    return vocab


class Vocabulary:
    """Encodes text as token ids, with a folder of `vocab.json` and `sentencepiece.bpe.model`.

    Args:
        folder: a checkpoint folder or the folder that `prepare.py` wrote.

    Attributes:
        lang_ids: id of each of the 100 languages' tokens, by language code.
        size: number of embedding rows: pieces, languages and made-up words.
    """

    def __init__(self, folder: Path) -> None:
        vocab: dict[str, int] = json.loads((folder / VOCAB_FILE).read_text(encoding="utf-8"))
        # The language codes come from a tokenizer, because transformers 4 and 5 keep the list in
        # different places.
        tokenizer = M2M100Tokenizer(str(folder / VOCAB_FILE), str(folder / SPM_FILE))
        self.lang_ids: dict[str, int] = {
            code: tokenizer.get_lang_id(code) for code in tokenizer.lang_code_to_id
        }
        self.size = len(vocab) + len(self.lang_ids) + MADE_UP_WORDS
        self._processor = spm.SentencePieceProcessor(model_file=str(folder / SPM_FILE))
        pieces = (self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size()))
        self._ids = np.array([vocab.get(piece, UNK) for piece in pieces], np.int32)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Returns the piece ids of each text, without the language token and `</s>`."""
        return [self._ids[ids] for ids in self._processor.encode(list(texts))]
