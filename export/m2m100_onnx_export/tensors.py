"""The tensors of a checkpoint's weights files, one at a time, under any name that they may have.

Knows files, names and shapes of tensors. Refuses to know an architecture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.hub import locate
from m2m100_onnx_export.weight_files import (
    TensorFiles,
    listing,
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
        self._read: set[str] = set()
        self._files = TensorFiles(weight_files(directory))
        self.is_bare = any(name.startswith(bare) for name in self._files.shapes)
        start = prefix if self.is_bare else ""
        self._names = {start + name: name for name in self._files.shapes}

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor.

        Raises:
            BundleError: the checkpoint has no such tensor.
        """
        return self._files.shapes[self._find(name)]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns rows `[start, stop)` of a tensor, in the checkpoint's type.

        Raises:
            BundleError: the checkpoint has no such tensor, or the file is damaged.
        """
        return self._files.rows(self._find(name), start, stop)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape and numbers."""
        if one == other or self.shape(one) != self.shape(other):
            return one == other
        starts = range(0, self.shape(one)[0], _ROWS_AT_ONCE)
        return all(
            torch.equal(*(self.rows(n, s, s + _ROWS_AT_ONCE).float() for n in (one, other)))
            for s in starts
        )

    def unread(self) -> list[str]:
        """Returns the tensors that were not asked for, in order."""
        return sorted(set(self._names) - self._read)

    def any_of(self, names: Iterable[str]) -> str | None:
        """Returns the first of the names that a tensor has, or None."""
        return next((name for name in names if name in self._names), None)

    def _find(self, name: str) -> str:
        """Returns a tensor's name in its file, and marks it as read."""
        stored = self._source(name)
        self._read.add(name)
        return stored

    def _source(self, name: str) -> str:
        if name not in self._names:
            raise BundleError(f"{self.directory}: the checkpoint has no tensor {name!r}")
        return self._names[name]
