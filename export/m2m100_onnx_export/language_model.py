"""The recipe of a language model's bundle.

Knows the files of a bundle. Refuses to know tensors and nodes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.language_config import LanguageModelConfig
from m2m100_onnx.bundle.language_graphs import (
    FUSED_FILES,
    graph_signature,
    portable_files,
)
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx.errors import BundleError
from m2m100_onnx.text.xlm import XLMTokenizer
from m2m100_onnx_export.card import Task
from m2m100_onnx_export.graphs.builder import GraphBuilder
from m2m100_onnx_export.graphs.causal import CausalGraphs
from m2m100_onnx_export.tensors import Source
from m2m100_onnx_export.verify import Report
from m2m100_onnx_export.verify_language_model import verify
from m2m100_onnx_export.weights import WeightsFile, write_weights
from m2m100_onnx_export.writing import finish, write_config
from m2m100_onnx_export.xlm_checkpoint import XLMCheckpoint

__all__ = ["LanguageModelRecipe"]


class LanguageModelRecipe:
    """Writes and verifies the bundle of an XLM checkpoint."""

    def __init__(self, source: Source, precision: Precision, *, causal: bool | None) -> None:
        """Opens the checkpoint; `export` describes the arguments.

        Raises:
            BundleError: the checkpoint has another architecture, or is broken.
        """
        self.checkpoint = XLMCheckpoint(source, causal=causal)
        self._source, self._precision = source, precision

    def write(self, work: Path, tell: Callable[[str], object]) -> FileRecord:
        """Writes every file, the manifest last, and returns the weights file's record."""
        source, precision, config = self.checkpoint, self._precision, self.checkpoint.config
        files_of_tokenizer = source.tokenizer_files()
        # Refuses a tokenizer that does not fit the model, before the long part of the work.
        tokenizer = XLMTokenizer(source.directory)
        if tokenizer.vocab_size > config.vocab_size:
            raise BundleError(
                f"{source.directory}: expected at most {config.vocab_size} tokens, which the "
                f"embedding has rows for, found {tokenizer.vocab_size} in the vocabulary"
            )
        for path in files_of_tokenizer:
            shutil.copyfile(path, work / path.name)
        head = "XLMWithLMHeadModel" if config.has_head else "XLMModel"
        facts = {"causal": config.causal, "architectures": [head]}
        write_config(source.directory, work, precision, **facts)
        tell("writing weights")
        weights = write_weights(source.parameters(), source, work / WEIGHTS_FILE, precision)
        tell("writing graphs")
        graphs = {}
        for name in _graphs(config):
            graphs[name] = graph_signature(name, config, precision)
            onnx.save_model(_build(name, config, weights, precision), work / name)
        finish(
            work,
            self._source,
            precision,
            weights.record,
            graphs,
            known=tokenizer.languages if config.languages else (),
            original="xlm",
            kind="language model",
            task=_task(config),
        )
        return weights.record

    def verify(self, work: Path) -> Report:
        """Compares a bundle with PyTorch."""
        return verify(self.checkpoint, work, self._precision)


def _task(config: LanguageModelConfig) -> Task:
    if not config.has_head:
        return "feature-extraction"
    return "text-generation" if config.causal else "fill-mask"


def _graphs(config: LanguageModelConfig) -> tuple[str, ...]:
    fused = FUSED_FILES if config.can_generate else ()
    return (*portable_files(config), *fused)


def _build(
    file: str, config: LanguageModelConfig, weights: WeightsFile, precision: Precision
) -> onnx.ModelProto:
    graph = GraphBuilder(weights, precision, WEIGHTS_FILE, fused=file in FUSED_FILES)
    CausalGraphs(graph, config).build(file)
    signature = graph_signature(file, config, precision)
    return graph.model(file.removesuffix(".onnx"), signature)
