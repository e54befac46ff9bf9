"""The recipe of an export: load, write, verify, and only then put the bundle in place.

Knows the files of a bundle and the order of the work. Refuses to know tensors and nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from m2m100_onnx import __version__
from m2m100_onnx.bundle.bundle import GENERATION_CONFIG_FILE, WEIGHTS_FILE
from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.bundle.graphs import (
    FUSED_FILES,
    GRAPH_FILES,
    PRECISIONS,
    Precision,
    graph_signature,
)
from m2m100_onnx.bundle.manifest import FileRecord, Manifest, sha256_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export.adapter import Adapter
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.graphs.builder import GraphBuilder, opset_of
from m2m100_onnx_export.graphs.fused import FusedGraphs
from m2m100_onnx_export.graphs.layers import check_activation
from m2m100_onnx_export.graphs.portable import PortableGraphs
from m2m100_onnx_export.place import Place
from m2m100_onnx_export.translation_parameters import translation_parameters
from m2m100_onnx_export.verify import Report, verify
from m2m100_onnx_export.weights import WeightsFile, write_weights

__all__ = ["Export", "export"]

# What a new generation_config.json takes from config.json besides the options of the table.
_KEPT = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "max_new_tokens",
)


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        bundle: the bundle's folder.
        seconds: time of the export without verification.
        weight_bytes: size of the weights file.
        report: what verification measured, or None without verification.
    """

    bundle: Path
    seconds: float
    weight_bytes: int
    report: Report | None


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    precision: Precision = "fp32",
    revision: str | None = None,
    languages: Sequence[str] | None = None,
    family: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify_outputs: bool = True,
    progress: Callable[[str], object] | None = None,
) -> Export:
    """Exports a checkpoint to a bundle, whole or not at all.

    Args:
        checkpoint: a local folder, or a hub id such as `facebook/m2m100_418M`.
        bundle: the folder to write.
        precision: how weights are stored and multiplied, one of `PRECISIONS`. `int4-int8` keeps
            eight bits in the embedding, which is also the LM head.
        revision: branch, tag or commit on the hub.
        languages: the languages that the checkpoint was trained on. The runtime then accepts no
            other.
        family: a name in `FAMILIES`, for a checkpoint whose files do not tell it: `small100` for
            SMaLL-100 with the tokenizer files of M2M100. None takes what the files tell.
        adapter: the folder of a LoRA or DoRA adapter of the checkpoint, as PEFT saves it. Its
            weights are merged into the bundle's.
        overwrite: replaces an existing bundle.
        verify_outputs: compares the graphs and whole translations with PyTorch.
        progress: receives a phrase at the start of each stage.

    Raises:
        BundleError: `checkpoint` is no M2M100 checkpoint, one of its files is damaged, or `adapter`
            is no adapter of it.
        ExportError: `bundle` exists, the disk is full, or verification failed.
        InvalidInputError: an argument is out of range.
        UnknownLanguageError: one of `languages` has no token.
    """
    if precision not in PRECISIONS:
        raise InvalidInputError(f"precision: expected {', '.join(PRECISIONS)}, found {precision!r}")
    tell = progress or (lambda _: None)
    target = Path(bundle)
    place = Place.of(target, overwrite=overwrite)
    merged = None if adapter is None else Adapter(adapter)
    source = Checkpoint(checkpoint, revision=revision, adapter=merged)
    check_activation(source.config, os.fspath(source.directory / CONFIG_FILE))
    with place.workplace() as work:
        started = time.perf_counter()
        record = _write(source, work, precision, languages, family, tell)
        seconds = time.perf_counter() - started
        report = None
        if verify_outputs:
            tell("verifying against PyTorch")
            report = verify(source, work, precision)
            report.raise_if_failed()
        place.put(work)
    return Export(target, seconds, record.size, report)


def _write(
    source: Checkpoint,
    work: Path,
    precision: Precision,
    languages: Sequence[str] | None,
    family: str | None,
    tell: Callable[[str], object],
) -> FileRecord:
    """Writes every file of the bundle, the manifest last, and returns the weights file's record."""
    files_of_tokenizer = source.tokenizer_files(family)
    # Refuses a tokenizer that does not fit the model, before the long part of the work.
    tokenizer = Tokenizer(source.directory, family=family, embedding_rows=source.config.vocab_size)
    for path in files_of_tokenizer:
        shutil.copyfile(path, work / path.name)
    tokenizer.write_table(work)
    _write_configs(source, work, precision)
    trained = _languages(tokenizer, languages)
    tell("writing weights")
    weights = write_weights(translation_parameters(source), source, work / WEIGHTS_FILE, precision)
    tell("writing graphs")
    # onnxruntime's attention operators for the CPU take float32 only.
    names = GRAPH_FILES if precision == "fp16" else (*GRAPH_FILES, *FUSED_FILES)
    for name in names:
        graph = build_graph(name, source.config, weights, precision)
        onnx.save_model(graph, work / name)
        onnx.checker.check_model(os.fspath(work / name))
    files = {WEIGHTS_FILE: weights.record}
    for path in sorted(work.iterdir()):
        if path.name not in files:
            files[path.name] = FileRecord(path.stat().st_size, sha256_of(path))
    manifest = Manifest(
        precision=precision,
        opset=opset_of(precision),
        source=source.source if source.revision else source.directory.resolve().name,
        revision=source.revision,
        languages=trained,
        family=tokenizer.family,
        adapter=source.adapter.directory.resolve().name if source.adapter else None,
        exporter_version=__version__,
        graphs={name: graph_signature(name, source.config, precision) for name in names},
        files=files,
    )
    manifest.write(work)
    return weights.record


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
    fused = file in FUSED_FILES
    graph = GraphBuilder(weights, precision, WEIGHTS_FILE, fused=fused)
    (FusedGraphs if fused else PortableGraphs)(graph, config).build(file)
    return graph.model(file.removesuffix(".onnx"), graph_signature(file, config, precision))


def _write_configs(source: Checkpoint, work: Path, precision: Precision) -> None:
    config = read_json(source.directory / CONFIG_FILE)
    config.pop("torch_dtype", None)
    config["dtype"] = "float16" if precision == "fp16" else "float32"
    _write_json(work / CONFIG_FILE, config)
    path = source.directory / GENERATION_CONFIG_FILE
    if path.is_file():
        read_json(path)  # refuses a broken file
        shutil.copyfile(path, work / GENERATION_CONFIG_FILE)
    else:
        _write_json(work / GENERATION_CONFIG_FILE, _generation_config(config))


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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _languages(tokenizer: Tokenizer, languages: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the trained languages, each once; each must have a token."""
    if languages is None:
        return None
    if not languages or isinstance(languages, str):
        raise InvalidInputError(
            f"languages: expected a list of codes, or None for all, found {languages!r}"
        )
    return tuple(dict.fromkeys(map(tokenizer.resolve_language, languages)))
