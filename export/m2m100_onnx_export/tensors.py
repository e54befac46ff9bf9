"""The tensors of a checkpoint's weights files, one at a time, under any name that they may have.

Knows files, names and shapes of tensors. Refuses to know an architecture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.hub import locate
from m2m100_onnx_export.weight_files import (
    listing,
    load_pickle,
    read_shapes,
    refuse_quantized,
    weight_files,
)

__all__ = ["Source", "Tensors"]

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies.

    Attributes:
        name: the checkpoint as the caller named it.
        directory: the local folder.
        revision: the hub commit, or None for a local folder.
    """

    name: str
    directory: Path
    revision: str | None

    @classmethod
    def find(cls, source: str | os.PathLike[str], revision: str | None) -> Source:
        """Finds a local folder, or downloads a checkpoint from the hub.

        Args:
            source: a local folder, or a hub id such as `facebook/m2m100_418M`.
            revision: branch, tag or commit on the hub.

        Raises:
            BundleError: the folder is no checkpoint, or a quantized one.
        """
        name = os.fspath(source)
        directory, commit = locate(name, revision)
        if not (directory / CONFIG_FILE).is_file():
            raise BundleError(
                f"{directory} is no checkpoint: expected {CONFIG_FILE}, found {listing(directory)}"
            )
        refuse_quantized(directory)
        return cls(name, directory, commit)


class Tensors:
    """The tensors of a folder, which are read when they are asked for.

    Attributes:
        directory: the folder.
        is_bare: whether the inner model alone was saved.
    """

    def __init__(self, directory: Path, *, prefix: str, bare: tuple[str, ...]) -> None:
        """Reads names and shapes.

        Args:
            directory: a checkpoint's folder.
            prefix: what the names of a whole model's tensors start with, such as `model.`.
            bare: what they start with where the inner model alone was saved, without the prefix.

        Raises:
            BundleError: there are no weights files, or one is damaged.
        """
        self.directory = directory
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        self._where: dict[str, tuple[Path, tuple[int, ...]]] = {}
        self._prefix = ""
        self._read: set[str] = set()
        for path in weight_files(directory):
            self._index(path, prefix, bare)
        self.is_bare = self._prefix != ""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor.

        Raises:
            BundleError: the checkpoint has no such tensor.
        """
        return self._find(name)[1]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns rows `[start, stop)` of a tensor, in the checkpoint's type.

        Raises:
            BundleError: the checkpoint has no such tensor, or the file is damaged.
        """
        path = self._find(name)[0]
        name = self._stored(name)
        if path in self._pickles:
            return self._pickles[path][name][start:stop]
        try:
            # Closing the file unmaps its pages. Kept open, the whole file would end up in memory.
            with safe_open(path, framework="pt") as file:
                rows: torch.Tensor = file.get_slice(name)[start:stop]
                return rows.clone()
        except SafetensorError as error:
            raise BundleError(f"{path}: damaged safetensors file: {error}") from None

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape and numbers."""
        if one == other or self.shape(one) != self.shape(other):
            return one == other
        starts = range(0, self.shape(one)[0], _ROWS_AT_ONCE)
        return all(
            torch.equal(*(self.rows(n, s, s + _ROWS_AT_ONCE) for n in (one, other))) for s in starts
        )

    def unread(self) -> list[str]:
        """Returns the tensors that were not asked for, in order."""
        return sorted(set(self._where) - self._read)

    def any_of(self, names: Iterable[str]) -> str | None:
        """Returns the first of the names that a tensor has, or None."""
        return next((name for name in names if name in self._where), None)

    def _find(self, name: str) -> tuple[Path, tuple[int, ...]]:
        if name not in self._where:
            raise BundleError(f"{self.directory}: the checkpoint has no tensor {name!r}")
        self._read.add(name)
        return self._where[name]

    def _stored(self, name: str) -> str:
        """Returns a tensor's name in its file."""
        return name.removeprefix(self._prefix)

    def _index(self, path: Path, prefix: str, bare: tuple[str, ...]) -> None:
        if path.suffix == ".safetensors":
            shapes = read_shapes(path)
        else:
            self._pickles[path] = load_pickle(path)
            shapes = {name: tuple(tensor.shape) for name, tensor in self._pickles[path].items()}
        if any(name.startswith(bare) for name in shapes):
            # The inner model alone was saved.
            self._prefix = prefix
        self._where.update({self._prefix + name: (path, shape) for name, shape in shapes.items()})
