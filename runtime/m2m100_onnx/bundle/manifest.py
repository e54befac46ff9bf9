"""A bundle's manifest: the checkpoint that it was made from, and size and hash of every file.

Knows manifest.json. Refuses to open graphs and weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from m2m100_onnx.bundle.config import is_inside, read_json
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.bundle.graphs import PRECISIONS, Precision, Signature, TensorSpec
from m2m100_onnx.errors import BundleError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = ["FORMAT_VERSION", "MANIFEST_FILE", "FileRecord", "Kind", "Manifest", "sha256_of"]

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
Kind = Literal["translation", "language model"]
_KINDS: tuple[Kind, ...] = ("translation", "language model")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    """Returns the hex SHA-256 of a file's bytes, which it reads in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # Small pieces: the memory of larger ones may stay with the process.
        while chunk := file.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and its hex SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        format_version: version of the bundle format; a runtime opens versions up to its own.
        precision: the weights' precision, one of `PRECISIONS`. Activations are float16 in fp16
            bundles and float32 in all others. `int4-int8` has four bits in the layers and eight in
            the embedding.
        opset: the ai.onnx operator set of the graphs.
        source: the checkpoint: its hub id, or the name of its local folder.
        revision: the hub commit of the checkpoint, or None for a local folder.
        languages: the codes that the checkpoint was trained on, or None for all that have a token.
        family: a name in `FAMILIES`; None in bundles of version 1, whose files tell it, and in
            those of language models.
        kind: what the graphs are: a translation model, or a language model.
        adapter: the name of the LoRA adapter's folder that was merged in, or None.
        exporter_version: version of the exporter.
        graphs: the inputs and outputs of each graph.
        files: size and hash of every other file of the bundle except the model card, README.md,
            which its owner may edit.
    """

    precision: Precision
    opset: int
    source: str
    revision: str | None
    languages: tuple[str, ...] | None
    exporter_version: str
    graphs: Mapping[str, Signature] = field(repr=False)
    files: Mapping[str, FileRecord] = field(repr=False)
    family: str | None = None
    kind: Kind = "translation"
    adapter: str | None = None
    format_version: int = FORMAT_VERSION

    def write(self, directory: Path) -> None:
        """Writes manifest.json."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads manifest.json.

        Raises:
            BundleError: the file is broken, or of a newer format than this runtime knows.
        """
        path = directory / MANIFEST_FILE
        raw = read_json(path)
        version = raw.get("format_version")
        if type(version) is not int or version < 1:
            raise BundleError(f"{path}: expected a format_version, found {version!r}")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path}: the bundle has format version {version}, this runtime knows versions up "
                f"to {FORMAT_VERSION}; upgrade m2m100-onnx, or export the checkpoint again"
            )
        precision = raw.get("precision")
        if precision not in PRECISIONS:
            expected = ", ".join(PRECISIONS)
            raise BundleError(f"{path}: expected a precision of {expected}, found {precision!r}")
        try:
            languages = raw["languages"]
            if languages is not None and not (
                languages and isinstance(languages, list) and all(type(c) is str for c in languages)
            ):
                raise TypeError(f"languages {languages!r}")
            family = raw.get("family")
            if family is not None and family not in [*FAMILIES]:
                raise ValueError(f"family {family!r}, expected one of {[*FAMILIES]}")
            kind = raw.get("kind", "translation")
            if kind not in _KINDS:
                raise ValueError(f"kind {kind!r}, expected one of {[*_KINDS]}")
            return cls(
                precision=precision,
                opset=_of(int, raw["opset"]),
                source=_of(str, raw["source"]),
                revision=None if raw["revision"] is None else _of(str, raw["revision"]),
                languages=None if languages is None else tuple(languages),
                exporter_version=_of(str, raw["exporter_version"]),
                graphs={_name(name): _signature(value) for name, value in raw["graphs"].items()},
                files={_name(name): _record(value) for name, value in raw["files"].items()},
                family=family,
                kind=kind,
                adapter=None if raw.get("adapter") is None else _of(str, raw["adapter"]),
                format_version=version,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if raised_by_signal_handler(error):
                raise
            raise BundleError(
                f"{path}: an entry is missing or of the wrong kind: {error!r}"
            ) from None


_T = TypeVar("_T", int, str)


def _of(kind: type[_T], value: Any) -> _T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {value!r}")
    return value


def _name(name: str) -> str:
    """Returns a file's name if it cannot lead out of the bundle."""
    if not is_inside(name):
        raise ValueError(f"expected the name of a file of the bundle, found {name!r}")
    return name


def _record(raw: Mapping[str, Any]) -> FileRecord:
    size, sha256 = _of(int, raw["size"]), _of(str, raw["sha256"])
    if size < 0 or not _SHA256.fullmatch(sha256):
        raise ValueError(f"expected a size and a SHA-256, found {raw!r}")
    return FileRecord(size, sha256)


def _signature(raw: Mapping[str, Any]) -> Signature:
    def specs(values: list[Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(_of(str, v["name"]), _of(str, v["dtype"]), tuple(map(_axis, v["shape"])))
            for v in values
        )

    return Signature(specs(raw["inputs"]), specs(raw["outputs"]))


def _axis(value: Any) -> int | str:
    return value if type(value) is str else _of(int, value)
