"""Weights and config of a checkpoint, one tensor at a time.

Knows transformers' names of tensors. Refuses to know graphs, the hub and the formats of files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from m2m100_onnx.bundle.bundle import TOKENIZER_FILES
from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.bundle.generation import options_from_config, read_generation
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.text.added import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from m2m100_onnx.text.files import (
    PIECES_FILE,
    VOCAB_FILE,
    check_pieces,
    read_config,
    read_family,
)
from m2m100_onnx.text.nllb import JSON_FILE
from m2m100_onnx_export.adapter import SHARED, Adapter, Change
from m2m100_onnx_export.positions import sinusoidal_positions
from m2m100_onnx_export.tensors import Source, Tensors

__all__ = ["Checkpoint"]

# The embedding of each part of the model, and all names of the one that published ones share.
_PARTS = {
    "encoder": "model.encoder.embed_tokens.weight",
    "decoder": "model.decoder.embed_tokens.weight",
    "head": "lm_head.weight",
}
_SHARED_NAMES = (SHARED, *_PARTS.values())
_LOGITS_BIAS = "final_logits_bias"
# Settings of config.json that transformers' M2M100 does not read, with the values that mean what it
# computes. Where one has another value, the model was trained with other code.
_SCHEME: Final[dict[str, tuple[object, ...]]] = {
    "position_embedding_type": (None, "absolute", "sinusoidal", "learned"),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "normalize_before": (None, True),
    "num_experts": (None, 0),
}
_LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.")
_POSITIONS = re.compile(r"model\.(encoder|decoder)\.embed_positions\.weights$")


class Checkpoint(Tensors):
    """A checkpoint, which reads a tensor when it is asked for.

    Attributes:
        directory: the local folder.
        config: the facts of config.json.
        adapter: the adapter that is merged into the tensors, or None.
        ties_embeddings: whether config.json says that encoder, decoder and LM head share one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        revision: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Opens a local folder, or downloads it, and checks that it is an M2M100 checkpoint.

        Args:
            source: a local folder, or a hub id such as `facebook/m2m100_418M`.
            revision: branch, tag or commit on the hub.
            adapter: an adapter to merge into the tensors.

        Raises:
            BundleError: the folder is no checkpoint, has another architecture, or is broken, or the
                adapter belongs to another model.
        """
        found = source if isinstance(source, Source) else Source.find(source, revision)
        self.directory = found.directory
        self.config = ModelConfig.from_json(found.directory / CONFIG_FILE)
        raw = read_json(found.directory / CONFIG_FILE)
        self.ties_embeddings = raw.get("tie_word_embeddings") is not False
        _check_scheme(found.directory / CONFIG_FILE, raw)
        self._check_generation()
        super().__init__(found.directory, prefix="model.", bare=("shared.", "encoder.", "decoder."))
        table = "model.encoder.embed_positions.weight"
        if raw.get("position_embedding_type") == "learned" and table not in self:
            raise BundleError(
                f"{self.directory}: expected a tensor {table!r}, since {CONFIG_FILE} has "
                "position_embedding_type of 'learned', found none"
            )
        self.adapter = adapter
        self._changes: Mapping[str, Change] = {}
        if adapter is not None:
            self._changes = self._changes_of(adapter)

    def tokenizer_files(self, family: str | None = None) -> list[Path]:
        """Returns the tokenizer's files.

        Args:
            family: a name in `FAMILIES`; None takes what the files tell.

        Raises:
            BundleError: a file that the family needs is missing, or two of them contradict.
        """
        config = read_config(self.directory)
        family = read_family(self.directory / TOKENIZER_CONFIG_FILE, config, family)
        is_nllb = not FAMILIES[family].has_vocab_file
        # Of each group one file is needed.
        needed = [(PIECES_FILE, JSON_FILE)] if is_nllb else [(VOCAB_FILE,), (PIECES_FILE,)]
        for group in needed:
            if not any((self.directory / name).is_file() for name in group):
                expected = " and ".join(" or ".join(names) for names in needed)
                raise BundleError(
                    f"{self.directory / group[0]} is missing; the tokenizer of a checkpoint of "
                    f"family {family} needs {expected}"
                )
        if is_nllb:
            check_pieces(self.directory)
        return [path for name in TOKENIZER_FILES if (path := self.directory / name).is_file()]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns rows `[start, stop)` of a tensor after the adapter's change.

        A tensor without a change keeps the checkpoint's type; one with a change is float32.

        Raises:
            BundleError: the checkpoint has no such tensor, or the file is damaged.
        """
        rows = super().rows(name, start, stop)
        return self._changes[name].apply(rows, start) if name in self._changes else rows

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same shape and numbers."""
        changes = [self._changes.get(name) for name in (one, other)]
        if self._source(one) == self._source(other) and changes[0] is changes[1]:
            return True
        return super().equal(one, other)

    def embeddings(self) -> dict[str, str]:
        """Returns the tensor of each part that has an embedding: `encoder`, `decoder`, `head`.

        Parts with the same numbers have the same tensor. As in transformers 5, stored numbers count
        even where config.json says that all parts share them.

        Raises:
            BundleError: the checkpoint has no embedding, or lacks the LM head that it should have.
        """
        head = _PARTS["head"]
        if not self.ties_embeddings and head not in self and head not in self._changes:
            raise BundleError(
                f"{self.directory}: expected a tensor {head!r}, since {CONFIG_FILE} has "
                "tie_word_embeddings of false, found none"
            )
        known = [self._shared_embedding()]
        found = {}
        for part, name in _PARTS.items():
            same = next((other for other in known if self.equal(other, name)), None)
            if same is None:
                known.append(name)
            found[part] = same or name
        return found

    def _shared_embedding(self) -> str:
        """Returns this checkpoint's name of the embedding that names without a tensor mean."""
        name = self.any_of(_SHARED_NAMES)
        if name is None:
            raise BundleError(f"{self.directory}: expected a tensor {SHARED!r}, found none")
        return name

    def _source(self, name: str) -> str:
        if name not in self and name in _SHARED_NAMES:
            name = self._shared_embedding()
        return super()._source(name)

    def _changes_of(self, adapter: Adapter) -> dict[str, Change]:
        shared = self._shared_embedding()
        names = {*self._names, *_SHARED_NAMES}
        shapes = {
            name: self._files.shapes[self._source(name)]
            for name in names
            if not self._is_beyond(name)
        }
        tied = {shared} | {
            name
            for name in _SHARED_NAMES
            if name not in self or (self.ties_embeddings and self.equal(shared, name))
        }
        return adapter.changes(shapes, frozenset(tied))

    def check_all_read(self) -> None:
        """Checks that each tensor was asked for, since one more is a part that the graphs lack.

        Layers beyond those that config.json counts are left out, as in transformers.

        Raises:
            BundleError: a tensor was not asked for.
        """
        known = (*_SHARED_NAMES, _LOGITS_BIAS)
        left = [name for name in self.unread() if name not in known]
        unknown = [name for name in left if not self._is_beyond(name) and not self._is_table(name)]
        if _LOGITS_BIAS in self and self.rows(_LOGITS_BIAS).any():
            unknown.insert(0, _LOGITS_BIAS)
        if unknown:
            raise BundleError(
                f"{self.directory}: expected the tensors of M2M100, "
                f"found {len(unknown)} others, such as {', '.join(unknown[:3])}: this is a "
                "checkpoint of another architecture"
            )

    def _is_beyond(self, name: str) -> bool:
        match = _LAYER.match(name)
        counts = {"encoder": self.config.encoder_layers, "decoder": self.config.decoder_layers}
        return match is not None and int(match[2]) >= counts[match[1]]

    def _is_table(self, name: str) -> bool:
        """Whether a tensor is the table of sinusoidal positions, which old versions stored."""
        if not _POSITIONS.match(name):
            return False
        expected = sinusoidal_positions(self.config)
        found = self.rows(name).float()
        return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-3)

    def _check_generation(self) -> None:
        """Raises `BundleError` if a generation setting is one that the runtime would refuse."""
        path, raw, config = read_generation(self.directory, self.config)
        try:
            options_from_config(
                raw,
                is_generation_config=path.name != CONFIG_FILE,
                positions=config.max_position_embeddings,
            )
        except InvalidInputError as error:
            raise BundleError(f"{path}: {error}") from None


def _check_scheme(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `BundleError` if config.json names another scheme of positions, norms or experts."""
    for key, accepted in _SCHEME.items():
        if config.get(key) not in accepted:
            expected = " or ".join(repr(value) for value in accepted if value is not None)
            raise BundleError(
                f"{path}: expected {key} to be {expected or 'absent'}, found {config[key]!r}, "
                "which no graph computes"
            )
