"""The folder of a bundle: the files that must be there, and whether they are still the same.

The kinds of bundles share it. Refuses to know which graphs a kind has.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.bundle.graphs import Precision, Signature
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Kind, Manifest, sha256_of
from m2m100_onnx.errors import BundleError, InvalidInputError

__all__ = [
    "WEIGHTS_FILE",
    "BundleFolder",
    "check_files",
    "file_states",
    "find_folder",
    "read_manifest",
]

WEIGHTS_FILE = "model.onnx_data"


@dataclass(frozen=True)
class BundleFolder(ABC):
    """The folder of an opened bundle, of any kind.

    Attributes:
        directory: the folder, with symbolic links resolved.
        manifest: the contents of manifest.json, or None.
        fused_files: the graphs in onnxruntime's own operators, whether or not the bundle has them.
        native_files: the graphs in this project's own operators, whether or not it has them.
        other_native_files: graphs in those operators that may run in the place of one of these.
        rarely_run: the graphs that run once a batch and have another graph's weights.
    """

    directory: Path
    manifest: Manifest | None
    _state: Mapping[str, list[int]] = field(repr=False, compare=False)
    fused_files: ClassVar[tuple[str, ...]]
    native_files: ClassVar[tuple[str, ...]] = ()
    other_native_files: ClassVar[tuple[str, ...]] = ()
    rarely_run: ClassVar[tuple[str, ...]]

    @property
    def precision(self) -> Precision:
        """Precision of the weights."""
        return self.manifest.precision if self.manifest else "fp32"

    @property
    @abstractmethod
    def portable_files(self) -> tuple[str, ...]:
        """The graphs in standard operators."""

    @property
    @abstractmethod
    def head_size(self) -> int:
        """E, the numbers of a head of the decoder's attention."""

    @property
    def has_fused_graphs(self) -> bool:
        """Whether the bundle has graphs in onnxruntime's own operators."""
        return all(map(self.has_graph, self.fused_files))

    @property
    def has_native_graphs(self) -> bool:
        """Whether the bundle has graphs in this project's own operators."""
        return bool(self.native_files) and all(map(self.has_graph, self.native_files))

    def has_graph(self, file: str) -> bool:
        """Says whether the manifest lists a graph; without one, the portable graphs are all."""
        return self.manifest is not None and file in self.manifest.graphs

    @abstractmethod
    def signature(self, file: str) -> Signature:
        """Returns the inputs and outputs that graph `file` must have."""

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
        unlisted = [name for name in self._files_read() if name not in listed]
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

    def _files_read(self) -> list[str]:
        """Returns the names of the folder's files that the runtime reads, the manifest left out."""
        names = {CONFIG_FILE, *self._other_files()}
        present = (path.name for path in self.directory.iterdir())
        # As in `file_states`: a graph may keep its weights in a file of any such name.
        return sorted(name for name in present if name in names or ".onnx" in name)

    @abstractmethod
    def _other_files(self) -> Sequence[str]:
        """Returns the names of files that the kind may have beside graphs, weights and config."""


def find_folder(directory: str | os.PathLike[str]) -> tuple[Path, Mapping[str, list[int]]]:
    """Returns the folder of a bundle, with symbolic links resolved, and `file_states` of it.

    A symbolic link is resolved once, so later reads are of the same bundle.

    Raises:
        BundleError: there is no such folder.
        InvalidInputError: `directory` is no path.
    """
    if not isinstance(directory, (str, os.PathLike)):
        kind = type(directory).__name__
        raise InvalidInputError(f"bundle: expected a folder's path, found {kind}")
    root = Path(directory)
    if not root.is_dir():
        raise BundleError(f"{root}: expected the folder of an exported bundle, found none")
    root = root.resolve()
    return root, _state_of(root)


def read_manifest(root: Path, kind: Kind) -> Manifest | None:
    """Returns the contents of manifest.json, or None where there is none.

    Raises:
        BundleError: the file is broken, of a newer format, or of another kind of bundle.
    """
    if not (root / MANIFEST_FILE).exists():
        return None
    manifest = Manifest.read(root)
    if manifest.kind != kind:
        face = {"translation": "Translator", "language model": "LanguageModel"}[manifest.kind]
        raise BundleError(
            f"{root}: expected a bundle of kind {kind!r}, found one of kind {manifest.kind!r}; "
            f"open it with {face}"
        )
    return manifest


def check_files(root: Path, manifest: Manifest | None, graphs: Sequence[str]) -> None:
    """Raises `BundleError` if a file is missing or has another size than the manifest says."""
    if manifest is None and not any((root / name).exists() for name in graphs):
        hint = ""
        if any(root.glob("*.safetensors")) or any(root.glob("pytorch_model*.bin")):
            hint = "; this is a checkpoint: run `m2m100 export` on it first"
        raise BundleError(
            f"{root} is no bundle: expected {MANIFEST_FILE} or graphs, found neither{hint}"
        )
    for name in graphs:
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
