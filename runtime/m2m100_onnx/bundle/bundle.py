"""An opened bundle of a translation model: its configs and its graphs.

The exporter writes what the modules beside this one describe, and the runtime checks it. Refuses to
know onnxruntime and tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig
from m2m100_onnx.bundle.folder import (
    WEIGHTS_FILE,
    BundleFolder,
    check_files,
    find_folder,
    read_manifest,
)
from m2m100_onnx.bundle.generation import GENERATION_CONFIG_FILE, read_generation
from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    DECODER_FILE,
    FUSED_FILES,
    GRAPH_FILES,
    NATIVE_FILES,
    NATIVE_FP16_STEP_FILE,
    Signature,
    graph_signature,
)
from m2m100_onnx.bundle.manifest import Manifest  # noqa: F401 - of an inherited field

__all__ = [
    "GENERATION_CONFIG_FILE",
    "TABLE_FILE",
    "TOKENIZER_FILES",
    "WEIGHTS_FILE",
    "Bundle",
]

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
class Bundle(BundleFolder):
    """An opened bundle.

    A folder that Optimum exported has no manifest. It opens too, as fp32.

    Attributes:
        directory: the folder, with symbolic links resolved.
        manifest: the contents of manifest.json, or None.
        config: the facts of config.json; ids that generation_config.json names come from there.
        generation: the contents of `generation_file`, from which the default options come.
        generation_file: generation_config.json; config.json where the bundle lacks it, since
            checkpoints older than that file have these settings there.
    """

    config: ModelConfig
    generation: Mapping[str, Any] = field(repr=False)
    generation_file: Path
    fused_files: ClassVar[tuple[str, ...]] = FUSED_FILES
    native_files: ClassVar[tuple[str, ...]] = NATIVE_FILES
    other_native_files: ClassVar[tuple[str, ...]] = (NATIVE_FP16_STEP_FILE,)
    rarely_run: ClassVar[tuple[str, ...]] = (DECODER_FILE, CROSS_ATTENTION_FILE)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Bundle:
        """Opens a bundle: checks that every file is there with its size, and reads the configs.

        Hashes are not compared, since that reads gigabytes; see `verify`.

        Raises:
            BundleError: a file is missing, truncated or broken, the format is newer, or the bundle
                holds a language model.
            InvalidInputError: `directory` is no path.
        """
        root, state = find_folder(directory)
        manifest = read_manifest(root, "translation")
        check_files(root, manifest, GRAPH_FILES)
        config = ModelConfig.from_json(root / CONFIG_FILE)
        source, generation, config = read_generation(root, config)
        return cls(root, manifest, state, config, generation, source)

    @property
    def has_generation_config(self) -> bool:
        """Whether `generation_file` is generation_config.json."""
        return self.generation_file.name == GENERATION_CONFIG_FILE

    @property
    def portable_files(self) -> tuple[str, ...]:
        """The graphs in standard operators."""
        return GRAPH_FILES

    @property
    def has_cross_attention(self) -> bool:
        """Whether the bundle has the graph that alignments are made from."""
        return self.has_graph(CROSS_ATTENTION_FILE)

    @property
    def head_size(self) -> int:
        """E, the numbers of a head of the decoder's attention."""
        return self.config.d_model // self.config.decoder_attention_heads

    def signature(self, file: str) -> Signature:
        """Returns the inputs and outputs that graph `file` must have."""
        return graph_signature(file, self.config, self.precision)

    def _other_files(self) -> Sequence[str]:
        return (GENERATION_CONFIG_FILE, TABLE_FILE, *TOKENIZER_FILES)
