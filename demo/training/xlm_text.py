"""The texts of the XLM demo as token ids, by transformers' tokenizer.

Knows languages, words and ids; knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import XLMTokenizer

LANG_IDS = {"de": 0, "en": 1}
"""Language numbers of the published xlm-clm-ende-1024."""
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10)))
"""The first entries of every published vocabulary of XLM."""
BOS, EOS, PAD, UNK = range(4)
END_OF_WORD = "</w>"


class Batch(NamedTuple):
    """Padded texts.

    Attributes:
        ids: `(B, T)` of `[<s>, *pieces, </s>]`.
        langs: `(B, T)`, the language of each position.
    """

    ids: torch.Tensor
    langs: torch.Tensor


def words(tokenizer: XLMTokenizer, text: str, lang: str) -> list[str]:
    """Returns the words of a text after Moses, in lower case and without accents."""
    return "".join(tokenizer._tokenize(text, lang=lang)).split(END_OF_WORD)[:-1]


def encode(tokenizer: XLMTokenizer, text: str, lang: str) -> list[int]:
    """Returns the pieces of a text, without control tokens.

    `_tokenize` takes text that looks like a control token for text; `tokenize` does not.
    """
    ids = tokenizer.convert_tokens_to_ids(tokenizer._tokenize(text, lang=lang))
    return list(ids)


def pad_batch(texts: Sequence[Sequence[int]], langs: Sequence[int]) -> Batch:
    """Pads texts, given as pieces, and adds `<s>` and `</s>`."""
    ids = torch.full((len(texts), max(map(len, texts)) + 2), PAD)
    for row, pieces in enumerate(texts):
        ids[row, : len(pieces) + 2] = torch.tensor([BOS, *pieces, EOS])
    return Batch(ids, torch.tensor(langs)[:, None].expand_as(ids))
