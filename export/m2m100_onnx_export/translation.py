"""The recipe of a translation model's bundle.

Knows the files of a bundle. Refuses to know tensors and nodes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from m2m100_onnx.bundle.bundle import GENERATION_CONFIG_FILE
from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    FUSED_FILES,
    GRAPH_FILES,
    NATIVE_FILES,
    NATIVE_FP16_STEP_FILE,
    Precision,
    graph_signature,
)
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export.adapter import Adapter
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.graphs.builder import GraphBuilder
from m2m100_onnx_export.graphs.fused import FusedGraphs
from m2m100_onnx_export.graphs.layers import check_activation
from m2m100_onnx_export.graphs.native import NativeGraphs
from m2m100_onnx_export.graphs.portable import PortableGraphs
from m2m100_onnx_export.tensors import Source
from m2m100_onnx_export.translation_parameters import translation_parameters
from m2m100_onnx_export.verify import Report, verify
from m2m100_onnx_export.weights import WeightsFile, write_weights
from m2m100_onnx_export.writing import finish, write_config, write_json

__all__ = ["TranslationRecipe", "build_graph"]

# What a new generation_config.json takes from config.json besides the options of the table.
_KEPT = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "max_new_tokens",
)


class TranslationRecipe:
    """Writes and verifies the bundle of an M2M100 checkpoint."""

    def __init__(
        self,
        source: Source,
        precision: Precision,
        *,
        languages: Sequence[str] | None,
        family: str | None,
        adapter: str | os.PathLike[str] | None,
    ) -> None:
        """Opens the checkpoint; `export` describes the arguments.

        Raises:
            BundleError: the checkpoint has another architecture, or is broken, or the adapter
                belongs to another model.
        """
        merged = None if adapter is None else Adapter(adapter)
        self.checkpoint = Checkpoint(source, adapter=merged)
        config = self.checkpoint.config
        check_activation(config, os.fspath(source.directory / CONFIG_FILE))
        self._source, self._precision = source, precision
        self._languages, self._family = languages, family

    def write(self, work: Path, tell: Callable[[str], object]) -> FileRecord:
        """Writes every file, the manifest last, and returns the weights file's record."""
        source, precision, family = self.checkpoint, self._precision, self._family
        files_of_tokenizer = source.tokenizer_files(family)
        # Refuses a tokenizer that does not fit the model, before the long part of the work.
        tokenizer = Tokenizer(
            source.directory, family=family, embedding_rows=source.config.vocab_size
        )
        for path in files_of_tokenizer:
            shutil.copyfile(path, work / path.name)
        tokenizer.write_table(work)
        _write_configs(source, work, precision)
        trained = _languages(tokenizer, self._languages)
        tell("writing weights")
        parameters = translation_parameters(source)
        weights = write_weights(parameters, source, work / WEIGHTS_FILE, precision)
        tell("writing graphs")
        # This project's own operators multiply quantized matrices.
        names: tuple[str, ...] = (*GRAPH_FILES, CROSS_ATTENTION_FILE, *FUSED_FILES)
        if precision not in ("fp32", "fp16"):
            names = (*names, *NATIVE_FILES, NATIVE_FP16_STEP_FILE)
        graphs = {}
        for name in names:
            graphs[name] = graph_signature(name, source.config, precision)
            onnx.save_model(build_graph(name, source.config, weights, precision), work / name)
        finish(
            work,
            self._source,
            precision,
            weights.record,
            graphs,
            known=tokenizer.languages,
            original="nllb" if tokenizer.family.startswith("nllb") else "m2m100",
            languages=trained,
            family=tokenizer.family,
            adapter=source.adapter.directory.resolve() if source.adapter else None,
        )
        return weights.record

    def verify(self, work: Path) -> Report:
        """Compares a bundle with PyTorch."""
        return verify(self.checkpoint, work, self._precision)


def build_graph(
    file: str, config: ModelConfig, weights: WeightsFile, precision: Precision
) -> onnx.ModelProto:
    """Builds one graph.

    Args:
        file: the graph's file name in the bundle.
        config: the model's sizes.
        weights: the weights file that the graph refers to.
        precision: the weights' precision.

    Raises:
        BundleError: config.json names an activation function that no family has.
    """
    graph = GraphBuilder(weights, precision, WEIGHTS_FILE, fused=file in FUSED_FILES)
    if file in (*NATIVE_FILES, NATIVE_FP16_STEP_FILE):
        NativeGraphs(graph, config).build(file)
    else:
        (FusedGraphs if graph.fused else PortableGraphs)(graph, config).build(file)
    return graph.model(file.removesuffix(".onnx"), graph_signature(file, config, precision))


def _write_configs(source: Checkpoint, work: Path, precision: Precision) -> None:
    config = write_config(source.directory, work, precision)
    path = source.directory / GENERATION_CONFIG_FILE
    if path.is_file():
        read_json(path)  # refuses a broken file
        shutil.copyfile(path, work / GENERATION_CONFIG_FILE)
    else:
        write_json(work / GENERATION_CONFIG_FILE, _generation_config(config))


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the generation config of a checkpoint that has no such file.

    Such a checkpoint names its options in config.json, and M2M100's defaults hold for the others.
    An option is left out where transformers' own default is the same.
    """
    found = {key: config[key] for key in _KEPT if config.get(key) is not None}
    for row in OPTIONS.values():
        if row.transformers is not None:
            named = config.get(row.transformers)
            value = row.default if named is None else named
            if value != row.silent:
                found[row.transformers] = value
    return found


def _languages(tokenizer: Tokenizer, languages: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the trained languages, each once; each must have a token."""
    if languages is None:
        return None
    if not languages or isinstance(languages, str):
        raise InvalidInputError(
            f"languages: expected a list of codes, or None for all, found {languages!r}"
        )
    return tuple(dict.fromkeys(map(tokenizer.resolve_language, languages)))
