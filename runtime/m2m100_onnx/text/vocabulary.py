"""The vocabulary: pieces of text and their ids.

SentencePiece counts the pieces one way and `vocab.json` another. In this file a piece's *number* is
SentencePiece's and its *id* is the one of `vocab.json`. Knows the contents of both files. Refuses
to know languages and sequences.
"""

from __future__ import annotations

import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Container, Iterable, Mapping
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import sentencepiece

from m2m100_onnx.process import native_call, raised_by_signal_handler

__all__ = ["Ids", "Vocabulary", "open_model"]

# Pieces that one call looks up. A call for all pieces is no faster and makes all strings at once.
_AT_ONCE = 4096


class Ids(Protocol):
    """Looks up ids and pieces, whatever file they come from."""

    def ids(self, pieces: Iterable[str], default: int) -> list[int]:
        """Returns the id of each piece or token, and `default` for anything else."""
        ...

    def pieces(self, ids: Iterable[int], default: str) -> list[str]:
        """Returns the piece or token of each id, and `default` for an id without one."""
        ...


class Vocabulary:
    """Splits text into pieces, joins pieces, and looks up ids and pieces.

    The strings stay in SentencePiece's memory, and two arrays map numbers to ids and back. A
    published vocabulary has 128,000 entries; a dictionary and a list of them take 25 MB of each
    process. Only `add` changes an instance. A pickled copy needs no file.
    """

    def __init__(
        self,
        model: bytes,
        entries: Mapping[str, int],
        sampling: Mapping[str, Any],
    ) -> None:
        """Reads the contents of both files.

        Args:
            model: a SentencePiece model.
            entries: the id of each piece. The ids are 0 to n-1, each once.
            sampling: SentencePiece's options for subword sampling.

        Raises:
            ValueError: SentencePiece cannot read the model.
        """
        self._sampling = dict(sampling)
        self._sp = open_model(model, self._sampling)
        numbers = range(self._sp.get_piece_size())
        ids = np.full(len(numbers), -1, np.int32)
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            pieces = self._sp.id_to_piece(list(some))
            ids[some.start : some.stop] = [entries.get(piece, -1) for piece in pieces]
        # SentencePiece gives this number to every string that is no piece.
        ids[self._sp.unk_id()] = -1
        numbered = np.zeros(len(entries), np.bool_)
        numbered[ids[ids >= 0]] = True
        others = {entry: index for entry, index in entries.items() if not numbered[index]}
        self._set_ids(ids, len(entries), others)

    def _set_ids(self, ids: npt.NDArray[np.int32], size: int, others: Mapping[str, int]) -> None:
        """Stores the id of each number, or -1, and the ids of the entries without a number."""
        self._ids = ids
        self._numbers = np.full(size, -1, np.int32)
        self._numbers[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
        self._others = dict(others)
        self._added: set[int] = set()
        self._names = {index: name for name, index in others.items()}

    def _unnumbered(self) -> dict[str, int]:
        """The entries that are no pieces of the SentencePiece model."""
        return {name: index for index, name in self._names.items() if index < len(self)}

    @classmethod
    def from_table(
        cls, model: bytes, table: bytes, made_of: str, sampling: Mapping[str, Any]
    ) -> Vocabulary:
        """Reads what `table` returned, which is faster than reading entries.

        Args:
            model: a SentencePiece model.
            table: the bytes of the table.
            made_of: the string that `table` was called with.
            sampling: SentencePiece's options for subword sampling.

        Raises:
            ValueError: the table is damaged, or was made of other files; or SentencePiece cannot
                read the model.
        """
        ids, size, others, found = _read_table(table)
        if found != made_of:
            raise ValueError(f"expected a table made of {made_of}, found one made of {found}")
        vocabulary = cls.__new__(cls)
        vocabulary._sampling = dict(sampling)
        vocabulary._sp = open_model(model, vocabulary._sampling)
        _check_table(ids, size, others, vocabulary._sp.get_piece_size())
        vocabulary._set_ids(ids, size, others)
        return vocabulary

    def table(self, made_of: str) -> bytes:
        """Returns the ids in the form that `from_table` reads.

        Args:
            made_of: identifies the files that the ids come from.
        """
        others, origin = (
            np.frombuffer(json.dumps(value).encode(), np.uint8)
            for value in (self._unnumbered(), made_of)
        )
        file = io.BytesIO()
        np.savez(file, ids=self._ids, size=np.array(len(self)), others=others, made_of=origin)
        return file.getvalue()

    def add(self, tokens: Mapping[str, int]) -> None:
        """Adds tokens with their ids; they take precedence over entries of the same name."""
        self._others |= tokens
        self._added |= {*tokens.values()}
        # A piece keeps its number: the table of this vocabulary lists each id once.
        self._names |= {
            index: token
            for token, index in tokens.items()
            if index >= len(self) or self._numbers[index] < 0
        }

    @property
    def added(self) -> Collection[int]:
        """The ids of added tokens."""
        return self._added

    def __len__(self) -> int:
        """Counts the entries; added tokens do not count."""
        return len(self._numbers)

    def split(self, text: str) -> list[str]:
        """Splits a text into pieces; a run of characters outside the model is one piece."""
        with native_call():
            pieces: list[str] = self._sp.encode(text, out_type=str)
        return pieces

    def join(self, pieces: Iterable[str]) -> str:
        """Joins pieces into a text."""
        with native_call():
            text: str = self._sp.decode(list(pieces))
        return text

    def text(self, pieces: Iterable[str], special: Container[str]) -> str:
        """Joins pieces and special tokens into a text, without blanks at either end.

        Source: `convert_tokens_to_string` of transformers' `M2M100Tokenizer`.
        """
        runs = groupby(pieces, key=special.__contains__)
        return "".join("".join(run) if kept else self.join(run) for kept, run in runs).strip()

    def ids(self, pieces: Iterable[str], default: int) -> list[int]:
        """Returns the id of each piece, entry or token, and `default` for anything else."""
        pieces = list(pieces)
        # SentencePiece refuses a str with a lone surrogate, but takes any bytes.
        encoded = [piece.encode("utf-8", "surrogatepass") for piece in pieces]
        with native_call():
            numbers = self._sp.piece_to_id(encoded)
        ids: list[int] = self._ids[np.array(numbers, np.int64)].tolist()
        return [
            self._others.get(piece, default if index < 0 else index)
            for piece, index in zip(pieces, ids, strict=True)
        ]

    def pieces(self, ids: Iterable[int], default: str) -> list[str]:
        """Returns the piece, entry or token of each id, and `default` for an id without one.

        Args:
            ids: integers of 0 or more.
            default: stands for ids that nothing has.
        """
        indices = np.array(list(ids), np.int64)
        inside = np.minimum(indices, len(self) - 1)
        numbers = np.where(indices < len(self), self._numbers[inside], -1)
        with native_call():
            pieces = self._sp.id_to_piece(np.maximum(numbers, 0).tolist())
        return [
            piece if number >= 0 else self._names.get(index, default)
            for piece, number, index in zip(pieces, numbers.tolist(), indices.tolist(), strict=True)
        ]

    def mismatches(self, expected: Collection[str]) -> tuple[list[str], list[str]]:
        """Returns the pieces without an entry, and the entries without a piece.

        Args:
            expected: entries that need no piece.
        """
        numbers = np.flatnonzero(self._ids < 0).tolist()
        real = [n for n in numbers if not (self._sp.is_control(n) or self._sp.is_unknown(n))]
        entries = self._unnumbered().keys() - set(expected)
        return sorted(self._sp.id_to_piece(real)), sorted(entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sp": self._sp.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sp = open_model(state["_sp"], self._sampling)


# What zipfile, numpy and json raise for damaged or crafted bytes. Whatever else is raised, such as
# the exception of a signal handler, passes through.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, EOFError, SyntaxError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RecursionError),
    *(MemoryError, tokenize.TokenError),
)


def _read_table(table: bytes) -> tuple[Any, int, Any, Any]:
    """Returns the contents of a table: ids, size, others and what it was made of.

    Raises:
        ValueError: the bytes are no table.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(table))
        # A table is neither compressed nor encrypted, so it unpacks to no more than its size.
        for entry in archive.infolist():
            if entry.compress_type or entry.flag_bits & 1 or entry.file_size > len(table):
                raise ValueError("expected an archive without compression")
        # numpy does not check the checksums of what it does not read.
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} is damaged")
        with np.load(io.BytesIO(table)) as arrays:
            others, made_of = (json.loads(arrays[n].tobytes()) for n in ("others", "made_of"))
            return arrays["ids"], int(arrays["size"]), others, made_of
    except _DAMAGE as error:
        raise ValueError(f"not a table: {error}") from error


def _check_table(ids: Any, size: int, others: Any, pieces: int) -> None:
    """Raises `ValueError` unless numbers and other entries have the ids 0 to `size` - 1, each once.

    Args:
        ids: the id of each of the `pieces` numbers, or -1.
        size: the number of entries.
        others: the ids of the entries without a number, by name.
        pieces: the number of pieces of the SentencePiece model.
    """
    if ids.dtype != np.int32 or ids.shape != (pieces,) or not isinstance(others, dict):
        raise ValueError(f"expected an id of each of {pieces} pieces, found {ids.shape}")
    if not all(type(index) is int and 0 <= index < size for index in others.values()):
        raise ValueError(f"expected integer ids from 0 to {size} - 1")
    found = np.concatenate([ids[ids != -1], np.array([*others.values()], np.int64)])
    inside = len(found) == size and (found >= 0).all() and (found < size).all()
    if not inside or (np.bincount(found, minlength=size) != 1).any():
        raise ValueError(f"expected the ids 0 to {size} - 1, each once")


def open_model(model: bytes, sampling: Mapping[str, Any]) -> Any:
    """Returns a processor of a SentencePiece model.

    Raises:
        ValueError: SentencePiece cannot read the model.
    """
    processor: Any = sentencepiece.SentencePieceProcessor(**sampling)
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError, LookupError, TypeError) as error:
        if raised_by_signal_handler(error):
            raise
        raise ValueError(str(error)) from error
    return processor
