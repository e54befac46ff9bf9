"""The tokenizer files of a bundle or checkpoint: what they are called, must say, and hold.

Knows `vocab.json`, `sentencepiece.bpe.model`, `tokenizer_config.json` and each family's language
codes; knows nothing of texts and ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle import sha256_of
from m2m100_onnx.config import read_json, refuse_pointer
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.vocabulary import Vocabulary

__all__ = [
    "CONFIG_FILE",
    "LANGUAGE_CODES",
    "PIECES_FILE",
    "TABLE_FILE",
    "VOCAB_FILE",
    "added_tokens",
    "read_vocabulary",
    "setting",
    "special_tokens",
    "write_table",
]

VOCAB_FILE: Final = "vocab.json"
PIECES_FILE: Final = "sentencepiece.bpe.model"
CONFIG_FILE: Final = "tokenizer_config.json"
TABLE_FILE: Final = "vocabulary.npz"
"""What `vocab.json` says, in a form that is quick to read; bundles have it, checkpoints not."""

_M2M100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu "
    "ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr "
    "ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk "
    "ur uz vi wo xh yi yo zh zu"
)
# The order is that of the ids, so it is part of every checkpoint.
LANGUAGE_CODES: Final[Mapping[str, tuple[str, ...]]] = {
    "m2m100": tuple(_M2M100.split()),
    "wmt21": ("en", "ha", "is", "ja", "cs", "ru", "zh", "de"),
}

_SPECIAL_TOKENS: Final = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}

# SentencePiece takes more, such as add_eos, but those would slip other ids into the sequence.
_SAMPLING: Final = {"enable_sampling": (bool,), "nbest_size": (int,), "alpha": (int, float)}

# What each setting defaults to, and which values are accepted.
_SETTINGS: Final[dict[str, tuple[Any, str, Callable[[Any], bool]]]] = {
    "tokenizer_class": ("", "'M2M100Tokenizer'", lambda value: value == "M2M100Tokenizer"),
    "language_codes": ("m2m100", f"one of {[*LANGUAGE_CODES]}", [*LANGUAGE_CODES].__contains__),
    "num_madeup_words": (8, "an int of 0 or more", lambda value: type(value) is int and value >= 0),
    "sp_model_kwargs": (
        {},
        f"a mapping with some of {sorted(_SAMPLING)}",
        lambda value: (
            isinstance(value, Mapping)
            and all(type(entry) in _SAMPLING.get(name, ()) for name, entry in value.items())
        ),
    ),
    "added_tokens_decoder": ({}, "an object", lambda value: isinstance(value, dict)),
    "clean_up_tokenization_spaces": (False, "a bool", lambda value: isinstance(value, bool)),
}

# The published m2m100 files disagree on about a hundred of 128,000 pieces ("▁perhaps" is one, see
# huggingface/transformers#11336), which become <unk>; those of two checkpoints on many more.
_TOLERATED_MISMATCH: Final = 0.05


def setting(path: Path, config: Mapping[str, Any], name: str, argument: object = None) -> Any:
    """The value of a setting: the argument, else the file's, else the default.

    Raises:
        BundleError: the file has a value that is not accepted.
        InvalidInputError: the argument is not.
    """
    default, expected, accepts = _SETTINGS[name]
    value = config.get(name) if argument is None else argument
    if value is None:
        return default
    if accepts(value):
        return value
    if argument is None:
        raise BundleError(f"{path}: expected {name} to be {expected}, found {value!r}")
    raise InvalidInputError(f"{name} must be {expected}, found {value!r}")


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: expected a tokenizer file, found {error.strerror}") from error
    refuse_pointer(path, data)
    return data


def special_tokens(path: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, str]:
    """The token of each role: bos, pad, eos and unk.

    Raises:
        BundleError: one is not in the vocabulary.
    """
    found = {}
    for role, default in _SPECIAL_TOKENS.items():
        value = config.get(f"{role}_token") or default
        token = value.get("content") if isinstance(value, dict) else value
        # `tokenize` makes a token harmless by splitting it, which takes two characters.
        if not isinstance(token, str) or len(token) < 2 or vocabulary.ids([token], -1) == [-1]:
            raise BundleError(
                f"{path}: expected an entry for the {role} token {token!r}, found none"
            )
        found[role] = token
    return found


def added_tokens(path: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> set[str]:
    """What the file declares special.

    Raises:
        BundleError: it adds a token that would change ids.
    """
    found = set()
    for key, entry in setting(path, config, "added_tokens_decoder").items():
        token = str(entry.get("content")) if isinstance(entry, dict) else ""
        (index,) = vocabulary.ids([token], -1)
        if str(index) != key or not entry.get("special") or len(token) < 2:
            raise BundleError(
                f"{path}: expected no added token but special ones of {VOCAB_FILE} and language "
                f"tokens, found {token!r} with id {key}"
            )
        found.add(token)
    return found


def read_vocabulary(
    folder: Path, config: Mapping[str, Any], sampling: Mapping[str, Any]
) -> Vocabulary:
    """The SentencePiece model of a folder, and the ids of its pieces.

    Args:
        folder: has `vocab.json`, the model and perhaps the table that `write_table` makes of them.
        config: what `tokenizer_config.json` says.
        sampling: SentencePiece's options.

    Raises:
        BundleError: a file is missing or damaged, or more than one in twenty pieces has no entry,
            or entries no piece.
    """
    path = folder / PIECES_FILE
    data = _read_bytes(path)
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        # Without a table, or with one of other files, there are the files themselves.
        table = (folder / TABLE_FILE).read_bytes()
        return Vocabulary.from_table(data, table, _made_of(folder), sampling)
    entries = _read_entries(folder / VOCAB_FILE)
    try:
        vocabulary = Vocabulary(data, entries, sampling)
    except (RuntimeError, OSError, ValueError) as error:
        found = f"{len(data)} bytes that do not load ({error})"
        raise BundleError(f"{path}: expected a SentencePiece model, found {found}") from error
    special = set(special_tokens(folder / VOCAB_FILE, config, vocabulary).values())
    lacking, odd = vocabulary.strays(special)
    every = len(entries) - len(special) + len(lacking)
    if len(lacking) + len(odd) > _TOLERATED_MISMATCH * every:
        raise BundleError(
            f"{folder / VOCAB_FILE}: expected the pieces of {PIECES_FILE}, found {len(entries)} "
            f"entries; {len(lacking)} pieces have no entry, such as {lacking[:3]}, and {len(odd)} "
            f"entries no piece, such as {odd[:3]}"
        )
    return vocabulary


def write_table(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes beside a vocabulary's files what `read_vocabulary` then reads instead of one."""
    table = vocabulary.table(_made_of(folder))
    if table is not None:
        (folder / TABLE_FILE).write_bytes(table)


def _made_of(folder: Path) -> str:
    return " ".join(sha256_of(folder / name) for name in (VOCAB_FILE, PIECES_FILE))


def _read_entries(path: Path) -> dict[str, int]:
    entries = read_json(path)
    wrong = [f"{index!r} for {name!r}" for name, index in entries.items() if type(index) is not int]
    if not wrong and sorted(entries.values()) != list(range(len(entries))):
        absent = set(range(len(entries))).difference(entries.values())
        wrong = [f"no {index} in {len(entries)} entries" for index in absent]
    if wrong:
        raise BundleError(f"{path}: expected the integer ids 0 to n-1, each once, found {wrong[0]}")
    return entries
