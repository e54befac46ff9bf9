"""The vocabulary of NLLB-200 in tokenizer.json, where no SentencePiece model lies beside it.

transformers 5 saves this file alone. The package tokenizers splits texts by it, with the steps that
transformers 5 takes: it reads pieces, merges and the table of normalization from the file, and has
its own steps around them. Refuses to know languages and sequences.
"""

from __future__ import annotations

import base64
import binascii
import importlib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, Final

from m2m100_onnx.errors import DependencyError
from m2m100_onnx.process import native_call, raised_by_signal_handler
from m2m100_onnx.text.nllb import BLANK, join_pieces

__all__ = ["JsonVocabulary"]

# Settings of the model that transformers 5 overrides. Files that mean something else by them are
# those of other tokenizers.
_MODEL: Final = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}
# The steps that may stand in the file: those that transformers 5 takes, and those by which older
# versions put blanks in order. It takes its own instead.
_STEPS: Final = {
    "normalizer": ("Precompiled", "Replace", "Strip"),
    "pre_tokenizer": ("Metaspace", "WhitespaceSplit"),
}
_INNER: Final = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}


class JsonVocabulary:
    """Splits text into pieces, joins pieces, and looks up ids and pieces.

    Does what `NllbVocabulary` does. Only `add` changes an instance. A pickled copy needs no file.
    """

    def __init__(self, contents: Mapping[str, Any]) -> None:
        """Reads the contents of tokenizer.json.

        Raises:
            DependencyError: tokenizers is not installed.
            ValueError: the file is damaged, or is that of another tokenizer.
        """
        tokenizers = _import_tokenizers()
        model = contents.get("model")
        if not isinstance(model, Mapping):
            raise ValueError(f"expected a model, found {type(model).__name__}")
        for name, accepted in _MODEL.items():
            if model.get(name) not in accepted:
                raise ValueError(f"expected {name} of {accepted[0]!r}, found {model.get(name)!r}")
        steps = {part: [*_steps(contents, part)] for part in _STEPS}
        vocab = model.get("vocab")
        _check_ids(vocab)
        assert isinstance(vocab, dict)
        merges = [_pair(merge) for merge in model.get("merges") or ()]
        unknown = model.get("unk_token", "<unk>")
        if not isinstance(unknown, str) or unknown not in vocab:
            raise ValueError(f"expected an unk_token of the vocab, found {unknown!r}")
        try:
            self._tokenizer = tokenizers.Tokenizer(
                tokenizers.models.BPE(
                    vocab=vocab,
                    merges=merges,
                    unk_token=unknown,
                    fuse_unk=True,
                    byte_fallback=False,
                )
            )
            for step in steps["normalizer"]:
                if step["type"] == "Precompiled":
                    self._tokenizer.normalizer = _normalizer(tokenizers, step)
        # The package has no exceptions of its own.
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            raise ValueError(f"tokenizers refuses it: {error}") from error
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
            replacement=BLANK, prepend_scheme="always", split=True
        )
        self._size = len(vocab)
        self._unknown = unknown
        self._others: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def add(self, tokens: Mapping[str, int]) -> None:
        """Adds tokens with their ids; they take precedence over pieces of the same name."""
        self._others |= tokens
        self._names |= {i: token for token, i in tokens.items() if i >= self._size}

    @property
    def added(self) -> Collection[int]:
        """The ids of added tokens."""
        return {*self._others.values()}

    def __len__(self) -> int:
        """Counts the pieces; added tokens do not count."""
        return self._size

    def split(self, text: str) -> list[str]:
        """Splits a text into pieces; a run of characters outside the vocabulary is one piece."""
        with native_call():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            tokens, spans = encoding.tokens, encoding.offsets
        pairs = zip(tokens, spans, strict=True)
        return [self._outside(text[slice(*s)]) if t == self._unknown else t for t, s in pairs]

    def _outside(self, run: str) -> str:
        """Returns the piece of a run that is outside, which must be no name of a piece."""
        # Normalization may have changed the run. No piece starts with a NUL, which it deletes.
        return run if self.ids([run], -1) == [-1] else f"\0{run}"

    def text(self, pieces: Iterable[str], special: Container[str]) -> str:
        """Joins pieces and special tokens into a text."""
        return join_pieces(pieces, special)

    def ids(self, pieces: Iterable[str], default: int) -> list[int]:
        """Returns the id of each piece or token, and `default` for anything else."""
        return [self._id(piece, default) for piece in pieces]

    def _id(self, piece: str, default: int) -> int:
        if piece in self._others:
            return self._others[piece]
        try:
            index: int | None = self._tokenizer.token_to_id(piece)
        except UnicodeEncodeError:  # a lone surrogate
            index = None
        return default if index is None else index

    def pieces(self, ids: Iterable[int], default: str) -> list[str]:
        """Returns the piece or token of each id, and `default` for an id without one."""
        return [
            piece
            if index < self._size and (piece := self._tokenizer.id_to_token(index)) is not None
            else self._names.get(index, default)
            for index in ids
        ]


def _import_tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise DependencyError(
            f"tokenizer.json without a SentencePiece model needs the package tokenizers ({error}); "
            "run `pip install 'm2m100-onnx[nllb]'`"
        ) from error


def _check_ids(vocab: object) -> None:
    """Raises `ValueError` unless a vocabulary has the ids 0 to n-1, each once."""
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError(f"expected a vocab, found {type(vocab).__name__}")
    ids = [*vocab.values()]
    if any(type(index) is not int for index in ids) or {*ids} != {*range(len(ids))}:
        raise ValueError(f"expected the integer ids 0 to {len(ids) - 1}, each once, in the vocab")


def _pair(merge: object) -> tuple[str, str]:
    """Returns the two parts of a merge, which older files join by a blank."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) for p in parts):
        return parts[0], parts[1]
    raise ValueError(f"expected merges of two pieces, found {merge!r}")


def _steps(contents: Mapping[str, Any], part: str) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a part; raises `ValueError` if one is none of NLLB's."""
    step: Any = contents.get(part)
    inner = step.get(_INNER[part]) if _type(step) == "Sequence" else [step]
    for one in inner if isinstance(inner, list) else [inner]:
        if one is None:
            continue
        if _type(one) not in _STEPS[part]:
            raise ValueError(
                f"expected a {part} of {' or '.join(_STEPS[part])}, found {_type(one)!r}"
            )
        yield one


def _type(step: Any) -> object:
    return step.get("type") if isinstance(step, Mapping) else step


def _normalizer(tokenizers: Any, step: Mapping[str, Any]) -> Any:
    try:
        table = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"expected a precompiled_charsmap in base64, found {error}") from None
    parts = tokenizers.normalizers
    blanks = parts.Replace(tokenizers.Regex(" {2,}"), " ")
    return parts.Sequence([parts.Precompiled(table), blanks])
