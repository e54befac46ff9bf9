"""The pieces of a model and their ids: SentencePiece counts them one way, `vocab.json` another.

Knows both files' contents; knows nothing of languages and sequences. Here a piece's *number* is
SentencePiece's, and its *id* the one of `vocab.json`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

__all__ = ["Vocabulary"]

_AT_ONCE = 4096
"""Pieces that are looked up at once: as quick as all, and their strings take little memory."""


class Vocabulary:
    """Splits text into pieces, joins them, and knows the id of each and the piece of each id.

    The strings stay in SentencePiece's memory, and two arrays lead from numbers to ids and back: a
    published vocabulary has 128,000 entries, and a dictionary and a list of them took 25 MB of each
    process. Never changes but by `add`; a pickled copy needs no file.
    """

    def __init__(
        self,
        model: bytes,
        entries: Mapping[str, int],
        sampling: Mapping[str, Any],
    ) -> None:
        """Takes both files' contents.

        Args:
            model: a SentencePiece model.
            entries: the id of each piece, 0 to n-1, each once.
            sampling: SentencePiece's options for subword sampling.

        Raises:
            RuntimeError, OSError, ValueError: SentencePiece's, of bytes that are no model.
        """
        self._sampling = dict(sampling)
        self._sp = _processor(model, self._sampling)
        numbers = range(self._sp.get_piece_size())
        ids = np.full(len(numbers), -1, np.int32)
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            pieces = self._sp.id_to_piece(list(some))
            ids[some.start : some.stop] = [entries.get(piece, -1) for piece in pieces]
        # Whatever string is no piece has this number too, so that it tells nothing.
        ids[self._sp.unk_id()] = -1
        order = np.fromiter(entries.values(), np.int32, len(entries))
        self._order = None if np.array_equal(order, np.arange(len(order))) else order
        numbered = np.zeros(len(entries), np.bool_)
        numbered[ids[ids >= 0]] = True
        others = {entry: index for entry, index in entries.items() if not numbered[index]}
        self._number(ids, len(entries), others)

    def _number(self, ids: npt.NDArray[np.int32], size: int, others: Mapping[str, int]) -> None:
        """Takes the id of each number, or -1, and the ids of the entries that have no number."""
        self._ids = ids
        self._numbers = np.full(size, -1, np.int32)
        self._numbers[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
        self._others = dict(others)
        self._names = {index: name for name, index in others.items()}

    def _strangers(self) -> dict[str, int]:
        """The entries that SentencePiece has no number for."""
        return {name: index for index, name in self._names.items() if index < len(self)}

    @classmethod
    def from_table(
        cls, model: bytes, table: bytes, made_of: str, sampling: Mapping[str, Any]
    ) -> Vocabulary:
        """Takes what `table` gave, which is quicker than to take entries.

        Raises:
            RuntimeError, OSError, ValueError: SentencePiece's, or `table` is damaged, or it was
                made of something else.
        """
        try:
            # Its checksums; numpy alone does not read on where an array is said to be shorter.
            if (name := zipfile.ZipFile(io.BytesIO(table)).testzip()) is not None:
                raise ValueError(f"{name} is damaged")
            with np.load(io.BytesIO(table)) as arrays:
                ids, size = arrays["ids"], int(arrays["size"])
                others, found = (json.loads(arrays[n].tobytes()) for n in ("others", "made_of"))
        # What is no archive, or no array, is told by half a dozen kinds of error.
        except Exception as error:
            raise ValueError(f"not a table: {error}") from error
        if found != made_of:
            raise ValueError(f"a table made of {found}, not of {made_of}")
        vocabulary = cls.__new__(cls)
        vocabulary._sampling, vocabulary._order = dict(sampling), None
        vocabulary._sp = _processor(model, vocabulary._sampling)
        vocabulary._number(ids, size, others)
        return vocabulary

    def table(self, made_of: str) -> bytes | None:
        """The ids for `from_table`, or None where entries are in another order.

        Args:
            made_of: tells what they were made of.
        """
        if self._order is not None:
            return None
        others, origin = (
            np.frombuffer(json.dumps(text).encode(), np.uint8)
            for text in (self._strangers(), made_of)
        )
        file = io.BytesIO()
        np.savez(file, ids=self._ids, size=np.array(len(self)), others=others, made_of=origin)
        return file.getvalue()

    def add(self, tokens: Mapping[str, int]) -> None:
        """Takes ids of further strings, which go before entries and pieces of the same name."""
        self._others |= tokens
        self._names |= {index: token for token, index in tokens.items()}

    def __len__(self) -> int:
        """Counts the entries, without further tokens."""
        return len(self._numbers)

    def split(self, text: str) -> list[str]:
        """The pieces of a text; a run of characters that are in none comes back as one."""
        pieces: list[str] = self._sp.encode(text, out_type=str)
        return pieces

    def join(self, pieces: Iterable[str]) -> str:
        """The text of pieces."""
        text: str = self._sp.decode(list(pieces))
        return text

    def ids(self, pieces: Iterable[str], default: int) -> list[int]:
        """The id of each piece, entry or token; what has none gets the default."""
        pieces = list(pieces)
        # SentencePiece takes no lone surrogates, but it takes bytes that stand for nothing.
        numbers = self._sp.piece_to_id([piece.encode("utf-8", "surrogatepass") for piece in pieces])
        ids: list[int] = self._ids[np.array(numbers, np.int64)].tolist()
        return [
            self._others.get(piece, default if index < 0 else index)
            for piece, index in zip(pieces, ids, strict=True)
        ]

    def pieces(self, ids: Iterable[int], default: str) -> list[str]:
        """The piece, entry or token of each id of 0 or more; one that has none gets the default."""
        indices = np.array(list(ids), np.int64)
        inside = np.minimum(indices, len(self) - 1)
        numbers = np.where(indices < len(self), self._numbers[inside], -1)
        pieces = self._sp.id_to_piece(np.maximum(numbers, 0).tolist())
        return [
            piece if number >= 0 else self._names.get(index, default)
            for piece, number, index in zip(pieces, numbers.tolist(), indices.tolist(), strict=True)
        ]

    def entries(self) -> dict[str, int]:
        """The id of each entry, in the order they were given in."""
        ids = range(len(self)) if self._order is None else self._order.tolist()
        return dict(zip(self.pieces(ids, ""), ids, strict=True))

    def strays(self, expected: Collection[str]) -> tuple[list[str], list[str]]:
        """What stands on one side alone: pieces without an entry, and entries without a piece.

        Args:
            expected: entries of which no piece is expected.
        """
        numbers = np.flatnonzero(self._ids < 0).tolist()
        real = [n for n in numbers if not (self._sp.is_control(n) or self._sp.is_unknown(n))]
        return sorted(self._sp.id_to_piece(real)), sorted(self._strangers().keys() - set(expected))

    @property
    def model(self) -> bytes:
        """The SentencePiece model, as SentencePiece writes it."""
        model: bytes = self._sp.serialized_model_proto()
        return model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sp": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sp = _processor(state["_sp"], self._sampling)


def _processor(model: bytes, sampling: Mapping[str, Any]) -> Any:
    processor: Any = sentencepiece.SentencePieceProcessor(**sampling)
    processor.LoadFromSerializedProto(model)
    return processor
