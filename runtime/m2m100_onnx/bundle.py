"""The on-disk contract: a bundle's files, what its graphs take and give, and its manifest.

The exporter writes what this file describes and the runtime checks it, so both read one table. It
knows no onnxruntime and no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from m2m100_onnx.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.signatures import (
    DECODER_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
    FOUR_BITS,
    FUSED_FILES,
    FUSED_RANK_FILE,
    FUSED_SOURCE_FILE,
    FUSED_STEP_FILE,
    GRAPH_FILES,
    PRECISIONS,
    Precision,
    Signature,
    TensorSpec,
    graph_signature,
)

__all__ = [
    "CONFIG_FILE",
    "DECODER_FILE",
    "DECODER_WITH_PAST_FILE",
    "ENCODER_FILE",
    "FORMAT_VERSION",
    "FOUR_BITS",
    "FUSED_FILES",
    "FUSED_RANK_FILE",
    "FUSED_SOURCE_FILE",
    "FUSED_STEP_FILE",
    "GENERATION_CONFIG_FILE",
    "GRAPH_FILES",
    "MANIFEST_FILE",
    "PRECISIONS",
    "TOKENIZER_FILES",
    "WEIGHTS_FILE",
    "Bundle",
    "FileRecord",
    "Manifest",
    "ModelConfig",
    "Precision",
    "Signature",
    "TensorSpec",
    "file_states",
    "graph_signature",
    "read_json",
    "sha256_of",
]

FORMAT_VERSION = 1

WEIGHTS_FILE = "model.onnx_data"
MANIFEST_FILE = "manifest.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "vocab.json",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # Small ones: what a thread has once held of larger ones may stay with the process.
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
    """What a bundle says of itself.

    Attributes:
        format_version: version of this contract; a runtime opens versions up to its own.
        precision: of the weights, one of `PRECISIONS`; activations are float16 in fp16 bundles and
            float32 in all others. `int4-int8`: four bits in the layers, eight in the embedding.
        opset: the ai.onnx operator set of the graphs.
        source: the checkpoint as it was named to the exporter.
        revision: the hub commit of the checkpoint, or None for a local folder.
        languages: codes the checkpoint was trained on, or None: all that have a token.
        exporter_version: version of the exporter.
        graphs: each graph's inputs and outputs.
        files: size and hash of every other file of the bundle.
    """

    precision: Precision
    opset: int
    source: str
    revision: str | None
    languages: tuple[str, ...] | None
    exporter_version: str
    graphs: Mapping[str, Signature] = field(repr=False)
    files: Mapping[str, FileRecord] = field(repr=False)
    format_version: int = FORMAT_VERSION

    def write(self, directory: Path) -> None:
        """Writes manifest.json."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads manifest.json.

        Raises:
            BundleError: it is broken, or of a newer format than this runtime knows.
        """
        path = directory / MANIFEST_FILE
        raw = read_json(path)
        version = raw.get("format_version")
        if not isinstance(version, int) or version < 1:
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
            return cls(
                precision=precision,
                opset=int(raw["opset"]),
                source=str(raw["source"]),
                revision=raw["revision"],
                languages=None if languages is None else tuple(languages),
                exporter_version=str(raw["exporter_version"]),
                graphs={name: _signature(value) for name, value in raw["graphs"].items()},
                files={
                    name: FileRecord(int(value["size"]), str(value["sha256"]))
                    for name, value in raw["files"].items()
                },
                format_version=version,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{path}: an entry is missing or of the wrong kind: {error!r}"
            ) from None


def _signature(raw: Mapping[str, Any]) -> Signature:
    def specs(values: list[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(v["name"], v["dtype"], tuple(v["shape"])) for v in values)

    return Signature(specs(raw["inputs"]), specs(raw["outputs"]))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its model's facts and, where it has one, its manifest.

    A folder that Optimum exported has no manifest; it opens too, as fp32.
    """

    directory: Path
    config: ModelConfig
    generation: Mapping[str, Any] = field(repr=False)
    manifest: Manifest | None
    _state: Mapping[str, list[int]] = field(repr=False, compare=False)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Bundle:
        """Checks that every file is there and as long as the manifest says, and reads the configs.

        Hashes are not computed here, since that reads gigabytes; see `verify`. A symbolic link is
        followed now and not again, so that what is opened later is of the same bundle.

        Raises:
            BundleError: something is missing, truncated, broken, or of a newer format.
            InvalidInputError: `directory` is no path.
        """
        if not isinstance(directory, (str, os.PathLike)):
            kind = type(directory).__name__
            raise InvalidInputError(f"bundle: expected a folder's path, found {kind}")
        root = Path(directory)
        if not root.is_dir():
            raise BundleError(f"{root}: expected the folder of an exported bundle, found none")
        root = root.resolve()
        state = _state_of(root)
        manifest = Manifest.read(root) if (root / MANIFEST_FILE).exists() else None
        if manifest is None and not any((root / name).exists() for name in GRAPH_FILES):
            hint = ""
            if any(root.glob("*.safetensors")) or any(root.glob("pytorch_model*.bin")):
                hint = "; this is a checkpoint: run `m2m100 export` on it first"
            raise BundleError(
                f"{root} is no bundle: it holds neither {MANIFEST_FILE} nor graphs{hint}"
            )
        for name in GRAPH_FILES:
            if not (root / name).is_file():
                raise BundleError(f"{root / name} is missing")
        for name, record in manifest.files.items() if manifest else ():
            path = root / name
            if not path.is_file():
                raise BundleError(f"{path} is missing")
            if path.stat().st_size != record.size:
                raise BundleError(
                    f"{path}: expected {record.size:,} bytes, found {path.stat().st_size:,}: "
                    "the file is truncated or was changed; copy or export the bundle again"
                )
        config = ModelConfig.from_json(root / CONFIG_FILE)
        return cls(root, config, _generation_defaults(root), manifest, state)

    @property
    def precision(self) -> Precision:
        """Element type of the graphs."""
        return self.manifest.precision if self.manifest else "fp32"

    @property
    def has_fused_graphs(self) -> bool:
        """Whether the bundle brings the graphs that are fastest on a CPU."""
        return self.manifest is not None and all(f in self.manifest.graphs for f in FUSED_FILES)

    def signature(self, file: str) -> Signature:
        """What graph `file` must take and give for the runtime to drive it."""
        return graph_signature(file, self.config, self.precision)

    def check_unchanged(self) -> None:
        """Refuses graphs and weights that are not those that were there when this was opened.

        Raises:
            BundleError: the bundle has been replaced, changed, moved or deleted since.
        """
        state = _state_of(self.directory)
        # Of files that have come since, none is read.
        changed = [name for name, was in sorted(self._state.items()) if state.get(name) != was]
        if changed:
            raise BundleError(
                f"{self.directory} is no longer the bundle that was opened; replaced, changed or "
                f"removed since: {', '.join(changed)}; open it again"
            )

    def verify(self) -> None:
        """Compares every file's SHA-256 with the manifest's, or raises `BundleError`.

        Reads the whole bundle. A bundle without a manifest fails too.
        """
        if self.manifest is None:
            raise BundleError(
                f"{self.directory}: no {MANIFEST_FILE}, so there is no hash to compare"
            )
        for name, record in self.manifest.files.items():
            try:
                found = sha256_of(self.directory / name)
            except FileNotFoundError:
                raise BundleError(f"{self.directory / name} is missing") from None
            if found != record.sha256:
                raise BundleError(
                    f"{self.directory / name}: expected SHA-256 {record.sha256}, found {found}"
                )


def file_states(root: Path) -> dict[str, list[int]]:
    """Size and time of change, in nanoseconds, of each graph and weights file of a folder.

    Folders that Optimum exported have a weights file for each graph.

    Raises:
        OSError: the folder or a file of it cannot be read.
    """
    files = sorted(path for path in root.iterdir() if ".onnx" in path.name)
    return {path.name: [(s := path.stat()).st_size, s.st_mtime_ns] for path in files}


def _state_of(root: Path) -> dict[str, list[int]]:
    """The same, and nothing where it cannot be read: what is missing is told with its name."""
    try:
        return file_states(root)
    except OSError:
        return {}


_GENERATION_KEYS = (
    "num_beams",
    "max_length",
    "min_length",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "num_return_sequences",
    "suppress_tokens",
    "max_new_tokens",
)


def _generation_defaults(root: Path) -> dict[str, Any]:
    """Decoding defaults: generation_config.json, else what old checkpoints kept in config.json."""
    path = root / GENERATION_CONFIG_FILE
    raw = read_json(path) if path.exists() else read_json(root / CONFIG_FILE)
    return {key: raw[key] for key in _GENERATION_KEYS if raw.get(key) is not None}
