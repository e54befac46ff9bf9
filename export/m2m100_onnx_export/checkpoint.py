"""Weights and config from a local folder or a hub id, one tensor at a time.

Knows the file formats a checkpoint comes in and the names transformers gives its tensors; knows
nothing of graphs.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from m2m100_onnx.bundle import CONFIG_FILE, TOKENIZER_FILES, ModelConfig, read_json
from m2m100_onnx.errors import BundleError

__all__ = ["Checkpoint"]

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
# What a checkpoint calls the one embedding that encoder, decoder and LM head share.
_SHARED_NAMES = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
_LM_HEAD = "lm_head.weight"
_ROWS_AT_ONCE = 8192


class Checkpoint:
    """A checkpoint whose tensors are read when asked for.

    Attributes:
        source: the checkpoint as the caller named it.
        directory: the local folder.
        revision: the hub commit, or None for a local folder.
        config: the facts of config.json.
    """

    def __init__(self, source: str | os.PathLike[str], *, revision: str | None = None) -> None:
        """Finds the folder, or downloads it, and checks that it is an M2M100 checkpoint.

        Args:
            source: a local folder, or a hub id such as `facebook/m2m100_418M`.
            revision: branch, tag or commit on the hub.

        Raises:
            BundleError: the folder is no checkpoint, or of another architecture, or broken.
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
        self.weight_files = _weight_files(self.directory)
        for path in self.weight_files:
            self._index(path)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the files that hold the tensors."""
        return sum(path.stat().st_size for path in self.weight_files)

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that exist; vocab.json and the SentencePiece model must.

        Raises:
            BundleError: one of the two is missing.
        """
        for name in TOKENIZER_FILES[:2]:
            if not (self.directory / name).is_file():
                raise BundleError(
                    f"{self.directory / name} is missing; an M2M100 checkpoint carries its "
                    f"tokenizer as {' and '.join(TOKENIZER_FILES[:2])}"
                )
        return [path for name in TOKENIZER_FILES if (path := self.directory / name).is_file()]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            BundleError: the checkpoint has no such tensor.
        """
        return self._find(name)[1]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `[start, stop)` of a tensor, in the checkpoint's own type.

        Raises:
            BundleError: the checkpoint has no such tensor, or its file is damaged.
        """
        path = self._find(name)[0]
        if path in self._pickles:
            return self._pickles[path][name][start:stop]
        try:
            # Opened anew for each tensor: closing unmaps the pages, which would otherwise count as
            # resident until the whole file had been read.
            with safe_open(path, framework="pt") as file:
                rows: torch.Tensor = file.get_slice(name)[start:stop]
                return rows.clone()
        except SafetensorError as error:
            raise BundleError(f"{path}: damaged safetensors file: {error}") from None

    def shared_embedding(self) -> str:
        """The name under which this checkpoint keeps the shared embedding.

        Raises:
            BundleError: it has none.
        """
        for name in _SHARED_NAMES:
            if name in self._where:
                return name
        raise BundleError(f"{self.directory}: expected a tensor {_SHARED_NAMES[0]!r}, found none")

    def untied_lm_head(self) -> str | None:
        """The LM head's name if it holds other numbers than the embedding, else None."""
        shared = self.shared_embedding()
        if _LM_HEAD not in self._where or self._equal(shared, _LM_HEAD):
            return None
        return _LM_HEAD

    def check_shared_embedding(self) -> None:
        """Checks that encoder and decoder have no embeddings of their own.

        Raises:
            BundleError: one has, as transformers 5 saves with `tie_word_embeddings` off.
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
    """The local folder of a checkpoint, downloaded if `source` is a hub id, and its commit."""
    if Path(source).is_dir():
        if revision is not None:
            raise BundleError(
                f"{source}: a folder has no revisions, found revision {revision!r}; leave it out, "
                "or name a checkpoint of the hub"
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
        # One format is enough, and the hub's other copies (TensorFlow, Flax, rust) are gigabytes.
        weights = (
            "*.safetensors"
            if any(n.endswith(".safetensors") for n in names)
            else "pytorch_model*.bin"
        )
        folder = snapshot_download(
            source, revision=info.sha, allow_patterns=["*.json", "*.model", weights]
        )
    # Its client's errors share no base class, and change with the HTTP library beneath.
    except Exception as error:
        raise BundleError(
            f"{source}: no such local folder, and the hub did not give it"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error
    return Path(folder), info.sha


def _listing(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return (
        ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"
    )


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the tensors; safetensors are preferred over pickles."""
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
    """Opens a pickled state dict without running code from it, memory-mapped where it can be."""
    errors = (RuntimeError, ValueError, pickle.UnpicklingError, EOFError, OSError, KeyError)
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files written before torch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except errors as error:
        raise BundleError(f"{path}: damaged or unsafe pytorch file: {error}") from None
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state dict, found a {type(state).__name__}")
    return {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
