"""The tokenizer files of a bundle or checkpoint: their names, their settings and their checks.

Knows `vocab.json`, `sentencepiece.bpe.model`, `tokenizer.json`, `vocabulary.npz`,
`tokenizer_config.json` and the two files that older versions of transformers wrote beside it.
Refuses to know texts and sequences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from m2m100_onnx.bundle.bundle import TABLE_FILE
from m2m100_onnx.bundle.config import read_json, refuse_pointer
from m2m100_onnx.bundle.families import FAMILIES, Family
from m2m100_onnx.bundle.manifest import sha256_of
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx.text.added import CONFIG_FILE
from m2m100_onnx.text.nllb import JSON_FILE, NllbVocabulary
from m2m100_onnx.text.nllb_json import JsonVocabulary
from m2m100_onnx.text.vocabulary import Ids, Vocabulary

__all__ = [
    "PIECES_FILE",
    "SPECIAL_FILE",
    "VOCAB_FILE",
    "check_pieces",
    "read_bytes",
    "read_config",
    "read_family",
    "read_pieces",
    "read_vocabulary",
    "setting",
    "special_tokens",
    "write_table",
]

VOCAB_FILE: Final = "vocab.json"
PIECES_FILE: Final = "sentencepiece.bpe.model"
SPECIAL_FILE: Final = "special_tokens_map.json"

_SPECIAL_TOKENS: Final = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}

# SentencePiece has more options, such as add_eos. They would put other ids into the sequence.
_SAMPLING: Final = {"enable_sampling": (bool,), "nbest_size": (int,), "alpha": (int, float)}

# The names that transformers gives to its lists of languages.
_CODES: Final = ("m2m100", "wmt21")
# The families that each class of tokenizers reads, and which of them the class alone stands for.
_CLASSES: Final = {
    name: [family for family, row in FAMILIES.items() if name in row.tokenizer_classes]
    for row in FAMILIES.values()
    for name in row.tokenizer_classes
}

# For each setting: the default, what is accepted in words, and the check.
_SETTINGS: Final[dict[str, tuple[Any, str, Callable[[Any], bool]]]] = {
    "tokenizer_class": (
        None,
        f"one of {[*_CLASSES]}",
        lambda value: isinstance(value, str) and value in _CLASSES,
    ),
    # What a caller or a manifest names. The files tell it by two other settings.
    "family": (None, f"one of {[*FAMILIES]}", lambda value: value in [*FAMILIES]),
    "language_codes": (None, f"one of {_CODES}", lambda value: value in _CODES),
    "legacy_behaviour": (False, "a bool", lambda value: isinstance(value, bool)),
    # The default is the family's.
    "num_madeup_words": (
        None,
        "an int of 0 or more",
        lambda value: type(value) is int and value >= 0,
    ),
    "sp_model_kwargs": (
        {},
        f"a mapping with some of {sorted(_SAMPLING)}",
        lambda value: (
            isinstance(value, Mapping)
            and all(type(entry) in _SAMPLING.get(name, ()) for name, entry in value.items())
        ),
    ),
    "added_tokens_decoder": (None, "an object", lambda value: isinstance(value, dict)),
    "clean_up_tokenization_spaces": (False, "a bool", lambda value: isinstance(value, bool)),
}

# The published M2M100 files disagree on about a hundred of 128,000 pieces, which become <unk>
# ("▁perhaps" is one, see huggingface/transformers#11336). The files of two different checkpoints
# disagree on many more. This is the share of entries that may be no pieces.
_TOLERATED_MISMATCH: Final = 0.025
# Entries of vocab.json that are no pieces: languages, and the made-up words of fairseq.
_NO_PIECE: Final = re.compile(r"__\w+__$|madeupword\d+$")


def setting(path: Path, config: Mapping[str, Any], name: str, argument: object = None) -> Any:
    """Returns the value of a setting: the argument, else the file's value, else the default.

    Args:
        path: the file, for error messages.
        config: the contents of the file.
        name: a setting of tokenizer_config.json.
        argument: the caller's value, or None.

    Raises:
        BundleError: the file's value is not accepted.
        InvalidInputError: the argument is not accepted.
    """
    default, expected, accepts = _SETTINGS[name]
    value = config.get(name) if argument is None else argument
    if value is None:
        return default
    if accepts(value):
        return value
    if argument is None:
        raise BundleError(f"{path}: expected {name} to be {expected}, found {value!r}")
    raise InvalidInputError(f"{name}: expected {expected}, found {value!r}")


def read_family(path: Path, config: Mapping[str, Any], argument: str | None) -> str:
    """Returns the name of a tokenizer's family.

    Args:
        path: tokenizer_config.json, for error messages.
        config: its contents.
        argument: the name that a caller or a manifest gives, or None. It tells what the files are
            silent about: SMaLL-100 may come with the files of M2M100.

    Raises:
        BundleError: the files name a class or language codes that are not known, or another family.
        InvalidInputError: the argument is no family.
    """
    wanted: str | None = setting(path, {}, "family", argument)
    codes: str | None = setting(path, config, "language_codes")
    kind: str | None = setting(path, config, "tokenizer_class")
    fitting = _CLASSES[kind] if kind else [*FAMILIES]
    legacy: bool = setting(path, config, "legacy_behaviour")
    fitting = [name for name in fitting if _fits(FAMILIES[name], codes, legacy)]
    if wanted is None and fitting:
        return fitting[0]
    if wanted not in fitting:
        raise BundleError(
            f"{path}: expected the files of family {wanted or 'm2m100'}, "
            f"found tokenizer_class {kind!r} and language_codes {codes!r}"
        )
    return wanted


def _fits(row: Family, codes: str | None, legacy: bool) -> bool:
    """Whether files with these codes are a family's; None stands for M2M100's codes."""
    if row.language_codes is None:
        return codes is None and row.legacy == legacy
    return row.language_codes == (codes or "m2m100")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the tokenizer's settings, none where there is no file.

    As in transformers, special_tokens_map.json counts where tokenizer_config.json does not list the
    added tokens itself, and wins there.

    Raises:
        BundleError: a file is broken.
    """
    config, special = (
        read_json(path) if (path := folder / name).exists() else {}
        for name in (CONFIG_FILE, SPECIAL_FILE)
    )
    return config if config.get("added_tokens_decoder") else {**config, **special}


def read_bytes(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        BundleError: the file is missing, or a Git LFS pointer.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path}: expected a tokenizer file, found {error.strerror}") from error
    refuse_pointer(path, data)
    return data


def special_tokens(path: Path, config: Mapping[str, Any], vocabulary: Ids) -> dict[str, str]:
    """Returns the token of each role: bos, pad, eos and unk.

    Args:
        path: `vocab.json`, for error messages.
        config: what `read_config` returned.
        vocabulary: what the tokens must be part of.

    Raises:
        BundleError: the vocabulary lacks one of the tokens.
    """
    found = {}
    for role, default in _SPECIAL_TOKENS.items():
        value = config.get(f"{role}_token") or default
        token = value.get("content") if isinstance(value, dict) else value
        # `tokenize` splits a token that stands in a text, so a token needs two characters.
        if not isinstance(token, str) or len(token) < 2 or vocabulary.ids([token], -1) == [-1]:
            raise BundleError(
                f"{path}: expected an entry for the {role} token {token!r}, found none"
            )
        found[role] = token
    return found


def read_vocabulary(
    folder: Path, config: Mapping[str, Any], sampling: Mapping[str, Any]
) -> Vocabulary:
    """Reads the vocabulary of a folder: from `vocabulary.npz` if it fits, else from `vocab.json`.

    Args:
        folder: holds `vocab.json`, `sentencepiece.bpe.model` and perhaps `vocabulary.npz`.
        config: what `read_config` returned.
        sampling: SentencePiece's options.

    Raises:
        BundleError: a file is missing or damaged, or more than one entry in forty is no piece.
    """
    path = folder / PIECES_FILE
    data = read_bytes(path)
    # A table that is missing, damaged or out of date is no error: `vocab.json` has the same ids.
    try:
        table = (folder / TABLE_FILE).read_bytes()
        return Vocabulary.from_table(data, table, _made_of(folder), sampling)
    except (OSError, ValueError) as error:
        if raised_by_signal_handler(error):
            raise
    entries = _read_entries(folder / VOCAB_FILE)
    try:
        vocabulary = Vocabulary(data, entries, sampling)
    except ValueError as error:
        found = f"{len(data)} bytes that do not load ({error})"
        raise BundleError(f"{path}: expected a SentencePiece model, found {found}") from error
    _check_match(folder / VOCAB_FILE, config, vocabulary)
    return vocabulary


def read_pieces(
    folder: Path, config: Mapping[str, Any], sampling: Mapping[str, Any]
) -> NllbVocabulary | JsonVocabulary:
    """Reads the vocabulary of NLLB: its SentencePiece model, else tokenizer.json alone.

    Args:
        folder: holds `sentencepiece.bpe.model` or `tokenizer.json`.
        config: what `read_config` returned.
        sampling: SentencePiece's options.

    Raises:
        BundleError: both files are missing, or the one to read is damaged or is none of NLLB; or
            `vocab.json` lies beside it, so the files are M2M100's.
        DependencyError: tokenizer.json lies alone, and the package tokenizers is not installed.
        InvalidInputError: tokenizer.json lies alone, and subword sampling is asked for.
    """
    if (folder / VOCAB_FILE).exists():
        raise BundleError(
            f"{folder / CONFIG_FILE}: expected 'M2M100Tokenizer', since {VOCAB_FILE} is here, "
            f"found {config.get('tokenizer_class')!r}, whose ids are those of {PIECES_FILE}"
        )
    path = folder / PIECES_FILE
    if not path.exists() and (folder / JSON_FILE).exists():
        return _read_json_vocabulary(folder / JSON_FILE, sampling)
    data = read_bytes(path)
    try:
        return NllbVocabulary(data, sampling)
    except ValueError as error:
        found = f"{len(data)} bytes that do not load ({error})"
        raise BundleError(f"{path}: expected NLLB's SentencePiece model, found {found}") from error


def _read_json_vocabulary(path: Path, sampling: Mapping[str, Any]) -> JsonVocabulary:
    if sampling.get("enable_sampling"):
        raise InvalidInputError(
            f"sp_model_kwargs: expected no sampling, which needs {PIECES_FILE}, found {sampling!r}"
        )
    contents = read_json(path)
    try:
        return JsonVocabulary(contents)
    except ValueError as error:
        raise BundleError(f"{path}: expected the tokenizer of NLLB: {error}") from error


def check_pieces(folder: Path) -> None:
    """Checks that tokenizer.json has the ids of the SentencePiece model where both files are.

    transformers 5 reads tokenizer.json then, and this package the model, which opens faster.

    Raises:
        BundleError: they differ, or a file is damaged.
    """
    path = folder / JSON_FILE
    if not path.exists() or not (folder / PIECES_FILE).exists():
        return
    vocabulary = read_pieces(folder, {}, {})
    model = read_json(path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        raise BundleError(f"{path}: expected a model with a vocab, found none")
    for index, piece in enumerate(vocabulary.pieces(range(len(vocabulary)), "")):
        if vocab.get(piece) != index:
            raise BundleError(
                f"{path}: expected the ids of {PIECES_FILE}, found {vocab.get(piece)} and not "
                f"{index} for {piece!r}; remove the file that the checkpoint was not trained with"
            )


def _check_match(path: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Raises `BundleError` if `vocab.json` and the SentencePiece model do not belong together.

    Entries that fine-tuning put there need no piece: added tokens, languages and made-up words. A
    trimmed `vocab.json` leaves pieces without an entry, which become unknown, as in transformers.
    """
    special = set(special_tokens(path, config, vocabulary).values())
    pieces, entries = vocabulary.mismatches(special)
    entries = [entry for entry in entries if not _NO_PIECE.match(entry)]
    if len(entries) > _TOLERATED_MISMATCH * len(vocabulary):
        raise BundleError(
            f"{path}: expected the pieces of {PIECES_FILE}, found {len(vocabulary)} entries; "
            f"{len(pieces)} pieces have no entry, such as {pieces[:3]}, and {len(entries)} entries "
            f"have no piece, such as {entries[:3]}"
        )


def write_table(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes `vocabulary.npz`, which `read_vocabulary` then reads instead of `vocab.json`."""
    (folder / TABLE_FILE).write_bytes(vocabulary.table(_made_of(folder)))


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
