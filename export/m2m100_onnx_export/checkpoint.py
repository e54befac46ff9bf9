"""Weights and config of a checkpoint, from a local folder or the hub, one tensor at a time.

Knows the file formats of checkpoints and transformers' names of tensors. Refuses to know graphs.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from m2m100_onnx.bundle.bundle import TOKENIZER_FILES
from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.errors import BundleError

__all__ = ["Checkpoint"]

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
# Names of the one embedding that encoder, decoder and LM head share.
_SHARED_NAMES = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_LM_HEAD = "lm_head.weight"
_ROWS_AT_ONCE = 8192


class Checkpoint:
    """A checkpoint, which reads a tensor when it is asked for.

    Attributes:
        source: the checkpoint as the caller named it.
        directory: the local folder.
        revision: the hub commit, or None for a local folder.
        config: the facts of config.json.
    """

    def __init__(self, source: str | os.PathLike[str], *, revision: str | None = None) -> None:
        """Opens a local folder, or downloads it, and checks that it is an M2M100 checkpoint.

        Args:
            source: a local folder, or a hub id such as `facebook/m2m100_418M`.
            revision: branch, tag or commit on the hub.

        Raises:
            BundleError: the folder is no checkpoint, has another architecture, or is broken.
        """
        self.source = os.fspath(source)
        self.directory, self.revision = _locate(self.source, revision)
        if not (self.directory / CONFIG_FILE).is_file():
            raise BundleError(
                f"{self.directory} is no checkpoint: expected {CONFIG_FILE}, "
                f"found {_listing(self.directory)}"
            )
        self.config = ModelConfig.from_json(self.directory / CONFIG_FILE)
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        self._where: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for path in _weight_files(self.directory):
            self._index(path)

    def tokenizer_files(self) -> list[Path]:
        """Returns the tokenizer's files, of which two must exist.

        Raises:
            BundleError: vocab.json or the SentencePiece model is missing.
        """
        for name in TOKENIZER_FILES[:2]:
            if not (self.directory / name).is_file():
                raise BundleError(
                    f"{self.directory / name} is missing; the tokenizer of an M2M100 checkpoint "
                    f"needs {' and '.join(TOKENIZER_FILES[:2])}"
                )
        return [path for name in TOKENIZER_FILES if (path := self.directory / name).is_file()]

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
        if path in self._pickles:
            return self._pickles[path][name][start:stop]
        try:
            # Closing the file unmaps its pages. Kept open, the whole file would end up in memory.
            with safe_open(path, framework="pt") as file:
                rows: torch.Tensor = file.get_slice(name)[start:stop]
                return rows.clone()
        except SafetensorError as error:
            raise BundleError(f"{path}: damaged safetensors file: {error}") from None

    def shared_embedding(self) -> str:
        """Returns this checkpoint's name of the shared embedding.

        Raises:
            BundleError: the checkpoint has no shared embedding.
        """
        for name in _SHARED_NAMES:
            if name in self._where:
                return name
        raise BundleError(f"{self.directory}: expected a tensor {_SHARED_NAMES[0]!r}, found none")

    def untied_lm_head(self) -> str | None:
        """Returns the LM head's name if its numbers differ from the embedding's, else None."""
        shared = self.shared_embedding()
        if _LM_HEAD not in self._where or self._equal(shared, _LM_HEAD):
            return None
        return _LM_HEAD

    def check_shared_embedding(self) -> None:
        """Checks that encoder and decoder have no embeddings of their own.

        Raises:
            BundleError: one of them has. transformers 5 saves such checkpoints without
                `tie_word_embeddings`.
        """
        shared = self.shared_embedding()
        for name in _SHARED_NAMES[1:3]:
            if name in self._where and not self._equal(shared, name):
                raise BundleError(
                    f"{self.directory}: expected one embedding for encoder and decoder, found "
                    f"other numbers in {name!r} than in {shared!r}"
                )

    def _equal(self, one: str, other: str) -> bool:
        if one == other or self.shape(one) != self.shape(other):
            return one == other
        starts = range(0, self.shape(one)[0], _ROWS_AT_ONCE)
        return all(
            torch.equal(*(self.rows(n, s, s + _ROWS_AT_ONCE) for n in (one, other))) for s in starts
        )

    def _find(self, name: str) -> tuple[Path, tuple[int, ...]]:
        if name not in self._where:
            raise BundleError(f"{self.directory}: the checkpoint has no tensor {name!r}")
        return self._where[name]

    def _index(self, path: Path) -> None:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise BundleError(f"{path}: damaged safetensors file: {error}") from None
        else:
            self._pickles[path] = _load_pickle(path)
            shapes = {name: tuple(tensor.shape) for name, tensor in self._pickles[path].items()}
        self._where.update({name: (path, shape) for name, shape in shapes.items()})


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder of a checkpoint and its hub commit; downloads a hub id."""
    if Path(source).is_dir():
        if revision is not None:
            raise BundleError(
                f"{source}: a folder has no revisions, found revision {revision!r}; leave it out, "
                "or give a hub id"
            )
        return Path(source), None
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local or Path(source).exists():
        raise BundleError(
            f"{source}: expected the folder of a checkpoint or a hub id, found neither"
        )
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(source, revision=revision)
        names = {entry.rfilename for entry in info.siblings or ()}
        # The hub also has copies for TensorFlow, Flax and Rust, of gigabytes each.
        weights = (
            "*.safetensors"
            if any(n.endswith(".safetensors") for n in names)
            else "pytorch_model*.bin"
        )
        folder = snapshot_download(
            source, revision=info.sha, allow_patterns=["*.json", "*.model", weights]
        )
    # The errors of huggingface_hub have no common base class and differ by HTTP library.
    except Exception as error:
        raise BundleError(
            f"{source}: found no such local folder, and could not download it from the hub"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error
    return Path(folder), info.sha


def _listing(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return (
        ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
    )


def _weight_files(directory: Path) -> list[Path]:
    """Returns the files that hold the tensors, safetensors rather than pickles."""
    for single in (_SAFETENSORS, _PICKLE):
        index = directory / f"{single}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise BundleError(f"{index}: expected a weight_map, found {type(shards).__name__}")
            paths = [directory / str(name) for name in sorted(set(shards.values()))]
        elif (directory / single).is_file():
            paths = [directory / single]
        else:
            continue
        for path in paths:
            if not path.is_file():
                raise BundleError(f"{path} is missing, though {index.name} names it")
        return paths
    raise BundleError(
        f"{directory}: expected weights as {_SAFETENSORS} or {_PICKLE} (or their shards), "
        f"found {_listing(directory)}"
    )


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Opens a pickled state dict, memory-mapped if possible, and runs no code from it."""
    errors = (RuntimeError, ValueError, pickle.UnpicklingError, EOFError, OSError, KeyError)
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of torch before 1.6 are no zip archives, and torch cannot map them.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except errors as error:
        raise BundleError(f"{path}: damaged or unsafe pytorch file: {error}") from None
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state dict, found a {type(state).__name__}")
    return {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
