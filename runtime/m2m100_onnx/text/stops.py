"""The texts and tokens that end a translation: whether a sequence ends with one of them.

Knows a tokenizer's pieces; knows no search and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["Stops"]


class Stops:
    """Says which sequences of tokens are over with their last token.

    A text may begin and end within a token, as transformers' `stop_strings` may; it is over with
    the token that completes it. A sequence of ids is over with its last id.
    """

    def __init__(
        self, sequences: Sequence[str | tuple[int, ...]], tokenizer: Tokenizer | None = None
    ) -> None:
        """Takes texts and sequences of ids, none of them empty; texts need the tokenizer."""
        self._texts = [text for text in sequences if isinstance(text, str)]
        self._ids = [ids for ids in sequences if not isinstance(ids, str)]
        self._tokenizer = tokenizer
        # A piece has a character or more.
        self._reach = max(map(len, self._texts), default=0) + 1

    def __call__(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns an answer for each of `(R, length)` sequences, `(R,)`."""
        over = np.zeros(len(sequences), bool)
        for ids in self._ids:
            if len(ids) <= sequences.shape[1]:
                over |= (sequences[:, -len(ids) :] == ids).all(axis=1)
        if self._texts:
            for row, tokens in enumerate(sequences[:, -self._reach :].tolist()):
                over[row] = over[row] or self._completes(tokens)
        return over

    def _completes(self, tokens: list[int]) -> bool:
        """Whether the last token completes a text."""
        assert self._tokenizer is not None
        control = self._tokenizer.control_ids
        pieces = [
            "" if token in control else piece.replace("▁", " ")
            for token, piece in zip(tokens, self._tokenizer.ids_to_pieces(tokens), strict=True)
        ]
        text, last = "".join(pieces), len(pieces[-1])
        # What begins earlier ends before the last token.
        return last > 0 and any(
            text.find(each, max(0, len(text) - last - len(each) + 1)) >= 0 for each in self._texts
        )
