"""The facts of config.json that graphs and decoding depend on, and the reading of JSON files.

Refuses to know graphs, tokenizers and generation settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from m2m100_onnx.errors import BundleError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = [
    "CONFIG_FILE",
    "ModelConfig",
    "is_inside",
    "kinds_of",
    "read_facts",
    "read_json",
    "refuse_pointer",
]

CONFIG_FILE = "config.json"
# The largest file of this kind is a vocabulary, and the published ones have 4 MB.
_LARGEST_JSON = 64 << 20
# Far beyond any model. Without a bound, one wrong number would claim all memory.
_LARGEST_SIZE, _MOST_LAYERS = (1 << 31) - 1, 1024


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file.

    Raises:
        BundleError: the file is missing, too large, is no JSON, or holds no object.
    """
    try:
        if path.exists() and not path.is_file():
            # Reading a pipe would wait forever.
            raise BundleError(f"{path}: expected a file, found something else")
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise BundleError(
                f"{path}: expected a JSON file of at most {_LARGEST_JSON:,} bytes, found {size:,}"
            )
        data = path.read_bytes()
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path} is missing or unreadable: {error.strerror}") from None
    refuse_pointer(path, data)
    try:
        value = json.loads(data.decode("utf-8"))
    # JSONDecodeError is a ValueError, and so is the refusal of a number of too many digits.
    except (ValueError, RecursionError) as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path}: expected a JSON object, found {error}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def is_inside(name: object) -> bool:
    """Whether a name that a file gives is that of a file in the same folder or below it.

    The folder's own links may lead elsewhere, as those of the hub's cache do.
    """
    if not isinstance(name, str) or not name.isprintable():
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and parts[0] != "//" and ".." not in parts


def refuse_pointer(path: Path, data: bytes) -> None:
    """Raises `BundleError` if a file's bytes are a Git LFS pointer instead of the content."""
    if data.startswith(b"version https://git-lfs"):
        raise BundleError(
            f"{path}: expected the file itself, found a Git LFS pointer to it; run `git lfs pull`"
        )


@dataclass(frozen=True)
class ModelConfig:
    """The facts of config.json that graphs and decoding depend on, under config.json's names.

    `max_position_embeddings` limits the tokens of a source and of a target, control tokens
    included.
    """

    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_position_embeddings: int
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 2
    scale_embedding: bool = True
    activation_function: str = "relu"

    @classmethod
    def from_json(cls, path: Path) -> ModelConfig:
        """Reads config.json.

        Raises:
            BundleError: the file is missing or broken, or describes another architecture.
        """
        raw = read_json(path)
        if raw.get("model_type") != "m2m_100":
            raise BundleError(
                f"{path}: expected model_type 'm2m_100', found {raw.get('model_type')!r}: "
                "this is a checkpoint of another architecture"
            )
        config = cls(**read_facts(path, raw, kinds_of(cls)))
        for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
            if heads < 1 or config.d_model % heads:
                raise BundleError(
                    f"{path}: expected d_model to be a multiple of the attention heads, "
                    f"found {config.d_model} and {heads}"
                )
        return config


Kinds = Mapping[str, tuple[type, Any]]
"""The type of each fact, and its default or `MISSING`."""


def kinds_of(facts: type) -> Kinds:
    """Returns the type and the default of each field of a dataclass of facts."""
    kinds: dict[str, type] = {"int": int, "bool": bool, "str": str, "float": float}
    return {spec.name: (kinds[str(spec.type)], spec.default) for spec in fields(facts)}


def read_facts(path: Path, raw: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """Returns those values of a JSON object that `kinds` names.

    Args:
        path: the file, for the message.
        raw: the JSON object.
        kinds: the type and the default of each value.

    Raises:
        BundleError: a value is missing, of another type, or out of range.
    """
    values: dict[str, Any] = {}
    for name, (kind, default) in kinds.items():
        value = raw.get(name, None if default is MISSING else default)
        most = _MOST_LAYERS if name.endswith("layers") else _LARGEST_SIZE
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (isinstance(value, int | float) and not 0 <= value <= most):
            raise BundleError(f"{path}: expected {name} as {kind.__name__}, found {value!r}")
        values[name] = value
    return values
