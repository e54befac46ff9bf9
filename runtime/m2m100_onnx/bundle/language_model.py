"""An opened bundle of an XLM language model: its config and its graphs.

Refuses to know onnxruntime, tokenizers and tensors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.bundle.folder import BundleFolder, check_files, find_folder, read_manifest
from m2m100_onnx.bundle.graphs import Signature
from m2m100_onnx.bundle.language_config import LanguageModelConfig
from m2m100_onnx.bundle.language_graphs import (
    FUSED_FILES,
    FUSED_PREFILL_FILE,
    graph_signature,
    portable_files,
)
from m2m100_onnx.bundle.manifest import Manifest  # noqa: F401 - of an inherited field
from m2m100_onnx.errors import BundleError

__all__ = ["XLM_TOKENIZER_FILES", "LanguageModelBundle"]

XLM_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class LanguageModelBundle(BundleFolder):
    """An opened bundle of a language model.

    Attributes:
        config: the facts of config.json.
    """

    config: LanguageModelConfig
    fused_files: ClassVar[tuple[str, ...]] = FUSED_FILES
    rarely_run: ClassVar[tuple[str, ...]] = (FUSED_PREFILL_FILE,)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> LanguageModelBundle:
        """Opens a bundle: checks that every file is there with its size, and reads the config.

        Raises:
            BundleError: a file is missing, truncated or broken, the format is newer, or the bundle
                holds a translation model.
            InvalidInputError: `directory` is no path.
        """
        root, state = find_folder(directory)
        manifest = read_manifest(root, "language model")
        if manifest is None:
            raise BundleError(f"{root} is no bundle of a language model: found no manifest.json")
        config = LanguageModelConfig.from_json(root / CONFIG_FILE)
        check_files(root, manifest, portable_files(config))
        return cls(root, manifest, state, config)

    @property
    def portable_files(self) -> tuple[str, ...]:
        """The graphs in standard operators; with a cache only where the model can generate."""
        return portable_files(self.config)

    @property
    def head_size(self) -> int:
        """E, the numbers of a head of attention."""
        return self.config.d_model // self.config.heads

    def signature(self, file: str) -> Signature:
        """Returns the inputs and outputs that graph `file` must have."""
        return graph_signature(file, self.config, self.precision)

    def _other_files(self) -> Sequence[str]:
        return XLM_TOKENIZER_FILES
