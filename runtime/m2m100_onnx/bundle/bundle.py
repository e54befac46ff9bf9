"""An opened bundle: the files that must be there, and whether they are still the same.

The exporter writes what the modules beside this one describe, and the runtime checks it. Refuses to
know onnxruntime and tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig
from m2m100_onnx.bundle.generation import GENERATION_CONFIG_FILE, read_generation
from m2m100_onnx.bundle.graphs import (
    FUSED_FILES,
    GRAPH_FILES,
    Precision,
    Signature,
    graph_signature,
)
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest, sha256_of
from m2m100_onnx.errors import BundleError, InvalidInputError

__all__ = [
    "GENERATION_CONFIG_FILE",
    "TABLE_FILE",
    "TOKENIZER_FILES",
    "WEIGHTS_FILE",
    "Bundle",
    "file_states",
]

WEIGHTS_FILE = "model.onnx_data"
TABLE_FILE = "vocabulary.npz"
"""The contents of `vocab.json` in a form that loads faster. Bundles have it, checkpoints do not."""
TOKENIZER_FILES = (
    "vocab.json",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    A folder that Optimum exported has no manifest. It opens too, as fp32.

    Attributes:
        directory: the folder, with symbolic links resolved.
        config: the facts of config.json; ids that generation_config.json names come from there.
        generation: the contents of `generation_file`, from which the default options come.
        generation_file: generation_config.json; config.json where the bundle lacks it, since
            checkpoints older than that file have these settings there.
        manifest: the contents of manifest.json, or None.
    """

    directory: Path
    config: ModelConfig
    generation: Mapping[str, Any] = field(repr=False)
    generation_file: Path
    manifest: Manifest | None
    _state: Mapping[str, list[int]] = field(repr=False, compare=False)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Bundle:
        """Opens a bundle: checks that every file is there with its size, and reads the configs.

        Hashes are not compared, since that reads gigabytes; see `verify`. A symbolic link is
        resolved once, so later reads are of the same bundle.

        Raises:
            BundleError: a file is missing, truncated or broken, or the format is newer.
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
        _check_files(root, manifest)
        config = ModelConfig.from_json(root / CONFIG_FILE)
        source, generation, config = read_generation(root, config)
        return cls(root, config, generation, source, manifest, state)

    @property
    def has_generation_config(self) -> bool:
        """Whether `generation_file` is generation_config.json."""
        return self.generation_file.name == GENERATION_CONFIG_FILE

    @property
    def precision(self) -> Precision:
        """Precision of the weights."""
        return self.manifest.precision if self.manifest else "fp32"

    @property
    def has_fused_graphs(self) -> bool:
        """Whether the bundle has the graphs that are fastest on a CPU."""
        return self.manifest is not None and all(f in self.manifest.graphs for f in FUSED_FILES)

    def signature(self, file: str) -> Signature:
        """Returns the inputs and outputs that graph `file` must have."""
        return graph_signature(file, self.config, self.precision)

    def check_unchanged(self) -> None:
        """Checks that graphs and weights are those that were there when the bundle was opened.

        Raises:
            BundleError: the bundle was replaced, changed, moved or deleted.
        """
        state = _state_of(self.directory)
        # The runtime reads no file that was added since.
        changed = [name for name, was in sorted(self._state.items()) if state.get(name) != was]
        if changed:
            raise BundleError(
                f"{self.directory} is no longer the bundle that was opened; replaced, changed or "
                f"removed since: {', '.join(changed)}; open it again"
            )

    def verify(self) -> None:
        """Compares every file's SHA-256 with the manifest's; reads the whole bundle.

        Raises:
            BundleError: a file differs or is missing, the manifest does not list a file that the
                runtime reads, or the bundle has no manifest.
        """
        if self.manifest is None:
            raise BundleError(
                f"{self.directory}: expected {MANIFEST_FILE}, found none, so there is no hash to "
                "compare"
            )
        listed = self.manifest.files
        unlisted = [name for name in _files_read(self.directory) if name not in listed]
        if unlisted:
            raise BundleError(
                f"{self.directory / MANIFEST_FILE}: expected a SHA-256 of every file of the "
                f"bundle, found none of {', '.join(unlisted)}"
            )
        for name, record in listed.items():
            try:
                found = sha256_of(self.directory / name)
            except FileNotFoundError:
                raise BundleError(f"{self.directory / name} is missing") from None
            if found != record.sha256:
                raise BundleError(
                    f"{self.directory / name}: expected SHA-256 {record.sha256}, found {found}"
                )


def _check_files(root: Path, manifest: Manifest | None) -> None:
    """Raises `BundleError` if a file is missing or has another size than the manifest says."""
    if manifest is None and not any((root / name).exists() for name in GRAPH_FILES):
        hint = ""
        if any(root.glob("*.safetensors")) or any(root.glob("pytorch_model*.bin")):
            hint = "; this is a checkpoint: run `m2m100 export` on it first"
        raise BundleError(
            f"{root} is no bundle: expected {MANIFEST_FILE} or graphs, found neither{hint}"
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


def _files_read(root: Path) -> list[str]:
    """Returns the names of a folder's files that the runtime reads, the manifest left out."""
    names = {CONFIG_FILE, GENERATION_CONFIG_FILE, TABLE_FILE, *TOKENIZER_FILES}
    present = (path.name for path in root.iterdir())
    # As in `file_states`: a graph may keep its weights in a file of any such name.
    return sorted(name for name in present if name in names or ".onnx" in name)


def file_states(root: Path) -> dict[str, list[int]]:
    """Returns size and time of change, in nanoseconds, of each graph and weights file of a folder.

    A folder that Optimum exported has a weights file for each graph.

    Raises:
        OSError: the folder or a file of it cannot be read.
    """
    files = sorted(path for path in root.iterdir() if ".onnx" in path.name)
    return {path.name: [(s := path.stat()).st_size, s.st_mtime_ns] for path in files}


def _state_of(root: Path) -> dict[str, list[int]]:
    """Returns `file_states`, and nothing where files cannot be read.

    The caller then finds the missing file and names it.
    """
    try:
        return file_states(root)
    except OSError:
        return {}
