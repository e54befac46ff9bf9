"""The tokenizer files of a bundle or checkpoint: what they are called, must say, and hold.

Knows `vocab.json`, `sentencepiece.bpe.model`, `tokenizer_config.json` and each family's language
codes; knows nothing of texts and ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import sentencepiece

from m2m100_onnx.bundle import read_json
from m2m100_onnx.errors import BundleError, InvalidInputError

__all__ = [
    "CONFIG_FILE",
    "LANGUAGE_CODES",
    "PIECES_FILE",
    "VOCAB_FILE",
    "added_tokens",
    "check_same_pieces",
    "load_pieces",
    "read_bytes",
    "read_vocab",
    "setting",
    "special_tokens",
]

VOCAB_FILE: Final = "vocab.json"
PIECES_FILE: Final = "sentencepiece.bpe.model"
CONFIG_FILE: Final = "tokenizer_config.json"

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


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        BundleError: it is missing, or only a pointer to what is stored elsewhere.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: expected a tokenizer file, found {error.strerror}") from error
    if data.startswith(b"version https://git-lfs"):
        raise BundleError(f"{path}: expected the file itself, found a Git LFS pointer to it")
    return data


def read_vocab(path: Path) -> dict[str, int]:
    """The id of each piece, in the order of the file.

    Raises:
        BundleError: the ids are not 0 to n-1.
    """
    vocab = read_json(path)
    wrong = [f"{index!r} for {piece!r}" for piece, index in vocab.items() if type(index) is not int]
    absent = set(range(len(vocab))).difference(vocab.values()) if not wrong else ()
    wrong += [f"no {index} in {len(vocab)} entries" for index in absent]
    if wrong:
        raise BundleError(f"{path}: expected the integer ids 0 to n-1, each once, found {wrong[0]}")
    return vocab


def special_tokens(path: Path, config: dict[str, Any], vocab: dict[str, int]) -> dict[str, str]:
    """The token of each role: bos, pad, eos and unk.

    Raises:
        BundleError: one is not in the vocabulary.
    """
    found = {}
    for role, default in _SPECIAL_TOKENS.items():
        value = config.get(f"{role}_token") or default
        token = value.get("content") if isinstance(value, dict) else value
        # `tokenize` makes a token harmless by splitting it, which takes two characters.
        if not isinstance(token, str) or len(token) < 2 or token not in vocab:
            raise BundleError(
                f"{path}: expected an entry for the {role} token {token!r}, found none"
            )
        found[role] = token
    return found


def added_tokens(path: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> set[str]:
    """What the file declares special.

    Raises:
        BundleError: it adds a token that would change ids.
    """
    found = set()
    for key, entry in setting(path, config, "added_tokens_decoder").items():
        token = str(entry.get("content")) if isinstance(entry, dict) else ""
        if str(ids.get(token)) != key or not entry.get("special") or len(token) < 2:
            raise BundleError(
                f"{path}: expected no added token but special ones of {VOCAB_FILE} and language "
                f"tokens, found {token!r} with id {key}"
            )
        found.add(token)
    return found


def load_pieces(path: Path, data: bytes, sampling: Mapping[str, Any]) -> Any:
    """The SentencePiece model that a file's bytes are.

    Raises:
        BundleError: they are none.
    """
    processor: Any = sentencepiece.SentencePieceProcessor(**sampling)
    try:
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, OSError, ValueError) as error:
        found = f"{len(data)} bytes that do not load ({error})"
        raise BundleError(f"{path}: expected a SentencePiece model, found {found}") from error
    return processor


def check_same_pieces(folder: Path, vocab: Mapping[str, int], sp: Any, special: set[str]) -> None:
    """Refuses a vocabulary and a SentencePiece model that do not belong together.

    Raises:
        BundleError: more than one in twenty pieces has no entry, or entries no piece.
    """
    size = sp.get_piece_size()
    ids = [n for n in range(size) if not (sp.is_control(n) or sp.is_unknown(n))]
    # One at a time: all pieces at once would leave holes in the memory of what stays.
    common = sum(piece in vocab and piece not in special for piece in map(sp.id_to_piece, ids))
    every = len(ids) + len(vocab) - len(special) - common
    if every - common > _TOLERATED_MISMATCH * every:
        pieces, entries = set(map(sp.id_to_piece, ids)), vocab.keys() - special
        lacking, odd = sorted(pieces - entries), sorted(entries - pieces)
        raise BundleError(
            f"{folder / VOCAB_FILE}: expected the {size} pieces of {PIECES_FILE}, found "
            f"{len(vocab)} entries; {len(lacking)} pieces have no entry, such as {lacking[:3]}, "
            f"and {len(odd)} entries no piece, such as {odd[:3]}"
        )
