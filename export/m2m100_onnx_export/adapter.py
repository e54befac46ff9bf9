"""A LoRA adapter as PEFT saves it, and its merge into the weights of a checkpoint.

Knows the files and names of PEFT, and the numbers of `merge_and_unload`. Refuses to know how a
checkpoint stores its tensors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2m100_onnx.bundle.config import read_json
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.weight_files import TensorFiles, listing

__all__ = ["SHARED", "Adapter", "Change"]

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_MODEL = "model."
SHARED = "model.shared.weight"
# What PEFT's names of tensors end with, and what each is to the change of a parameter.
_PARTS = {
    r"lora_A\.weight": "a",
    r"lora_B\.weight": "b",
    r"lora_embedding_A": "embedding_a",
    r"lora_embedding_B": "embedding_b",
    r"lora_B\.bias": "lora_bias",
    r"lora_magnitude_vector(?:\.weight)?": "magnitude",
    r"token_adapter\.trainable_tokens_delta": "tokens",
    r"(?:base_layer\.)?(?:weight|bias)": "replacement",
}
_NAME = re.compile(rf"{re.escape(_PREFIX)}(.+?)\.({'|'.join(_PARTS)})")
# Settings that a merge reads, and those that say nothing about it: what was trained and from what,
# and where PEFT puts tensors whose names say it too. PEFT takes `fan_in_fan_out` as false for the
# layers that M2M100 has. Any other setting makes another method of LoRA.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"} | {
    *("use_dora", "init_lora_weights", "modules_to_save", "trainable_token_indices"),
}
_SILENT = {
    *("auto_mapping", "base_model_name_or_path", "bias"),
    *("corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias"),
    *("lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size"),
    *("revision", "runtime_config", "target_modules", "task_type"),
}
# Ways to start training that leave the checkpoint's own weights alone.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter of the model.

    Attributes:
        parts: the adapter's names of the tensors, by what each is to the change.
        tensors: reads them.
        scaling: the factor of the low-rank product.
        indices: the rows that the part `tokens` replaces.
    """

    parts: Mapping[str, str]
    tensors: TensorFiles
    scaling: float = 1.0
    indices: tuple[int, ...] = ()

    @property
    def is_low_rank(self) -> bool:
        """Whether a product of two matrices is added."""
        return "a" in self.parts or "embedding_a" in self.parts

    def expected(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each part for a parameter of a shape."""
        rows, *columns = shape
        width = columns[0] if columns else 0
        shapes: dict[str, tuple[int, ...]] = {
            "a": (rank, width),
            "b": (rows, rank),
            "embedding_a": (rank, rows),
            "embedding_b": (width, rank),
            "lora_bias": shape,
            "magnitude": (rows,),
            "tokens": (len(self.indices), width),
            "replacement": shape,
        }
        return {part: shapes[part] for part in self.parts}

    def apply(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        """Returns the float32 rows of a parameter after the merge.

        Source: section 4.1 of LoRA (Hu et al., 2021), and equation 5 of DoRA (Liu et al., 2024).

        Args:
            rows: the checkpoint's rows from `start` on.
            start: the first of them.
        """
        stop = start + len(rows)
        if "replacement" in self.parts:
            rows = self.tensors.rows(self.parts["replacement"], start, stop)
        rows = rows.float()
        if "tokens" in self.parts:
            rows = rows.clone()
            trained = self._read("tokens")
            for row, index in zip(trained, self.indices, strict=True):
                if start <= index < stop:
                    rows[index - start] = row
        if "a" in self.parts:
            rows = rows + self._read("b")[start:stop] @ self._read("a") * self.scaling
        elif "embedding_a" in self.parts:
            product = self._read("embedding_b") @ self._read("embedding_a")[:, start:stop]
            rows = rows + product.t() * self.scaling
        if "magnitude" in self.parts:
            norm = torch.linalg.norm(rows, dim=1)
            rows = (self._read("magnitude")[start:stop] / norm).view(-1, 1) * rows
        if "lora_bias" in self.parts:
            rows = rows + self._read("lora_bias")[start:stop] * self.scaling
        return rows

    def _read(self, part: str) -> torch.Tensor:
        return self.tensors.rows(self.parts[part]).float()


class Adapter:
    """A folder with a LoRA adapter.

    Attributes:
        directory: the folder.
        is_bare: whether it was trained on `M2M100Model`, without the model around it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Reads the config and the names of the tensors.

        Raises:
            BundleError: the folder has no adapter, a damaged one, or one of another method.
        """
        self.directory = Path(directory)
        if not (self.directory / _CONFIG_FILE).is_file():
            found = listing(self.directory) if self.directory.is_dir() else "no such folder"
            raise BundleError(
                f"{self.directory} is no adapter: expected {_CONFIG_FILE}, found {found}"
            )
        self._config = read_json(self.directory / _CONFIG_FILE)
        self._check_method()
        path = next((p for n in _WEIGHTS if (p := self.directory / n).is_file()), None)
        if path is None:
            raise BundleError(
                f"{self.directory}: expected the adapter's weights as {' or '.join(_WEIGHTS)}, "
                f"found {listing(self.directory)}"
            )
        self._path = path
        self._tensors = TensorFiles([path])
        self._parts = self._sort_tensors()
        self.is_bare = not any(name.startswith((_MODEL, "lm_head.")) for name in self._parts)

    def changes(
        self, shapes: Mapping[str, tuple[int, ...]], tied: frozenset[str]
    ) -> dict[str, Change]:
        """Returns the change of each parameter, by the model's name.

        Args:
            shapes: the shapes of the model's parameters, by name.
            tied: the names of those that are one parameter in PyTorch: the shared embedding.

        Raises:
            BundleError: the adapter belongs to another model, or a merge cannot express it.
        """
        found: dict[str, Change] = {}
        for name, parts in self._parts.items():
            full = _MODEL + name if self.is_bare else name
            if full not in shapes:
                raise BundleError(
                    f"{self._path}: expected an adapter of this checkpoint, found a change of "
                    f"{full!r}, which the checkpoint lacks"
                )
            rank, scaling = self._scaling(name.rpartition(".")[0])
            change = Change(parts, self._tensors, scaling, self._indices(name, parts))
            self._check_shapes(full, change, shapes[full], rank)
            found[full] = change
        return self._spread(found, tied)

    def _spread(self, found: dict[str, Change], tied: frozenset[str]) -> dict[str, Change]:
        """Gives a change of the shared embedding to all its names, as PyTorch does."""
        touched = sorted(tied & set(found))
        if len(tied) < 2 or not touched:
            return found
        spread = dict(found)
        for name in touched:
            change = found[name]
            if change.is_low_rank or ("tokens" in change.parts and name != SHARED):
                raise BundleError(
                    f"{self._path}: expected an adapter that a merge can express, found a change "
                    f"of {name!r}, whose numbers encoder, decoder and LM head share: merged into "
                    "one of them it changes all"
                )
            if "tokens" in change.parts or not self._is_saved_module(name):
                if len(touched) > 1 and not self._are_equal([found[n] for n in touched]):
                    raise BundleError(
                        f"{self._path}: expected one embedding for {' and '.join(touched)}, found "
                        "different numbers"
                    )
                spread.update(dict.fromkeys(tied, change))
        if SHARED in touched and not any(n in spread for n in tied if n != SHARED):
            raise BundleError(
                f"{self._path}: found new numbers for {SHARED!r} alone, which neither encoder nor "
                "decoder reads; expected those of embed_tokens or lm_head"
            )
        return spread

    def _are_equal(self, changes: list[Change]) -> bool:
        names = [change.parts.get("replacement") for change in changes]
        if None in names:
            return False
        first, *others = (self._tensors.rows(str(name)) for name in names)
        return all(torch.equal(first, other) for other in others)

    def _check_method(self) -> None:
        """Raises `BundleError` if the config names another method than LoRA or DoRA."""
        path, config = self.directory / _CONFIG_FILE, self._config
        method = config.get("peft_type")
        if method != "LORA":
            raise BundleError(f"{path}: expected peft_type 'LORA', found {method!r}")
        for key, value in config.items():
            if value and key not in _READ | _SILENT:
                raise BundleError(
                    f"{path}: expected LoRA or DoRA, found {key} of {_short(value)}, which is "
                    "another method, or one that this exporter does not know"
                )
        start = config.get("init_lora_weights")
        if start not in _STARTS:
            raise BundleError(
                f"{path}: expected weights that are added to the checkpoint's own, found "
                f"init_lora_weights of {start!r}, which changes those too; save the adapter with "
                "path_initial_model_for_weight_conversion"
            )
        for key, kinds in (("r", int), ("lora_alpha", (int, float))):
            value = config.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
                raise BundleError(f"{path}: {key}: expected a positive number, found {value!r}")
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = config.get(key)
            numbers = patterns.values() if isinstance(patterns, dict) else [patterns or 1]
            if not all(type(n) in (int, float) and n > 0 for n in numbers):
                raise BundleError(f"{path}: {key}: expected positive numbers, found {patterns!r}")

    def _sort_tensors(self) -> dict[str, dict[str, str]]:
        """Returns the parts of each change, by PEFT's name of the parameter."""
        found: dict[str, dict[str, str]] = {}
        for key in self._tensors.shapes:
            match = _NAME.fullmatch(key)
            if match is None:
                raise BundleError(
                    f"{self._path}: expected tensors of LoRA named {_PREFIX}..., found {key!r}"
                )
            module, end = match[1], match[2]
            part = next(p for pattern, p in _PARTS.items() if re.fullmatch(pattern, end))
            kind = "bias" if end.endswith("bias") else "weight"
            found.setdefault(f"{module}.{kind}", {})[part] = key
        if not found:
            raise BundleError(f"{self._path}: expected tensors of LoRA, found none")
        for name, parts in found.items():
            pairs = (("a", "b"), ("embedding_a", "embedding_b"))
            lone = next((pair for pair in pairs if (pair[0] in parts) != (pair[1] in parts)), None)
            if lone:
                raise BundleError(
                    f"{self._path}: {name}: expected both matrices of LoRA, found {lone} alone"
                )
            if not self._fits_dora(parts):
                raise BundleError(
                    f"{self._path}: {name}: expected lora_magnitude_vector for linear layers and "
                    f"with use_dora alone, found {', '.join(parts.values())}, and use_dora of "
                    f"{self._config.get('use_dora')!r}"
                )
        return found

    def _fits_dora(self, parts: Mapping[str, str]) -> bool:
        is_dora = bool(self._config.get("use_dora"))
        if "embedding_a" in parts:
            return not is_dora
        return ("magnitude" in parts) == (is_dora and "a" in parts)

    def _scaling(self, module: str) -> tuple[int, float]:
        """Returns the rank and the scaling of a module."""
        rank = self._setting("rank_pattern", "r", module)
        alpha = self._setting("alpha_pattern", "lora_alpha", module)
        scaling = alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        return int(rank), scaling

    def _setting(self, patterns: str, default: str, module: str) -> Any:
        """Returns a setting of a module, whose name PEFT matches from the end."""
        given = self._config.get(patterns) or {}
        try:
            found = (n for key, n in given.items() if re.match(rf"(.*\.)?({key})$", module))
            return next(found, self._config[default])
        except re.error:
            raise BundleError(
                f"{self.directory / _CONFIG_FILE}: {patterns}: expected regular expressions, "
                f"found {_short([*given])}"
            ) from None

    def _indices(self, name: str, parts: Mapping[str, str]) -> tuple[int, ...]:
        """Returns the rows that were trained."""
        if "tokens" not in parts:
            return ()
        found = self._config.get("trainable_token_indices")
        if isinstance(found, dict):
            module = name.removesuffix(".weight")
            found = next(
                (rows for key, rows in found.items() if f".{module}".endswith(f".{key}")), None
            )
        if not isinstance(found, list) or not all(type(i) is int and i >= 0 for i in found):
            raise BundleError(
                f"{self.directory / _CONFIG_FILE}: expected trainable_token_indices for {name}, "
                f"found {_short(found)}"
            )
        return tuple(found)

    def _is_saved_module(self, name: str) -> bool:
        """Whether PEFT keeps a copy of a module, beside the parameters that are shared."""
        module = name.removesuffix(".weight")
        return any(module.endswith(key) for key in self._config.get("modules_to_save") or ())

    def _check_shapes(self, name: str, change: Change, shape: tuple[int, ...], rank: int) -> None:
        if change.is_low_rank and len(shape) != 2:
            raise BundleError(f"{self._path}: {name}: expected a matrix, found shape {shape}")
        for part, expected in change.expected(shape, rank).items():
            found = self._tensors.shapes[change.parts[part]]
            if found != expected:
                raise BundleError(
                    f"{self._path}: tensor {change.parts[part]!r}: expected shape {expected} by "
                    f"the checkpoint and {_CONFIG_FILE}, found {found}"
                )
        beyond = [index for index in change.indices if index >= shape[0]]
        if beyond:
            raise BundleError(
                f"{self._path}: trainable_token_indices: expected rows of the {shape[0]} of "
                f"{name}, found {beyond[0]}"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
