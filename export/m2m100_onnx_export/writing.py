"""What the recipes of all kinds of bundles write alike: config.json, and the manifest at the end.

Refuses to know tensors, nodes and tokenizers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from m2m100_onnx import __version__
from m2m100_onnx.bundle.config import CONFIG_FILE, read_json
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import Precision, Signature
from m2m100_onnx.bundle.manifest import FileRecord, Kind, Manifest, sha256_of
from m2m100_onnx_export.card import Card, Task
from m2m100_onnx_export.graphs.builder import opset_of
from m2m100_onnx_export.hub import CARD_FILE
from m2m100_onnx_export.licence import licence_of
from m2m100_onnx_export.tensors import Source

__all__ = ["finish", "write_config", "write_json"]


def write_config(directory: Path, work: Path, precision: Precision, **facts: Any) -> dict[str, Any]:
    """Writes config.json and returns its contents.

    Args:
        directory: the checkpoint's folder.
        work: the bundle's folder.
        precision: the weights' precision.
        **facts: entries that are other than the checkpoint's.
    """
    config = read_json(directory / CONFIG_FILE)
    config.pop("torch_dtype", None)
    config["dtype"] = "float16" if precision == "fp16" else "float32"
    config |= facts
    write_json(work / CONFIG_FILE, config)
    return config


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object as JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finish(
    work: Path,
    source: Source,
    precision: Precision,
    weights: FileRecord,
    graphs: Mapping[str, Signature],
    *,
    known: Sequence[str],
    original: str,
    kind: Kind = "translation",
    languages: tuple[str, ...] | None = None,
    family: str | None = None,
    adapter: Path | None = None,
    task: Task = "translation",
) -> None:
    """Checks the graphs, and writes the model card and the manifest, the last files of a bundle.

    Args:
        work: the bundle's folder, with all other files.
        source: where the checkpoint lies.
        precision: the weights' precision.
        weights: the record of the weights file, which is not read again.
        graphs: the inputs and outputs of each graph.
        known: the codes of all languages.
        original: whose original checkpoint it is made of, for the card.
        kind: what the graphs are.
        languages: the codes that the checkpoint was trained on, or None for all.
        family: a name in `FAMILIES`.
        adapter: the folder of the adapter that was merged in.
        task: what the model is for, for the card.
    """
    for name in graphs:
        onnx.checker.check_model(os.fspath(work / name))
    files = {WEIGHTS_FILE: weights}
    for path in sorted(work.iterdir()):
        if path.name not in files:
            files[path.name] = FileRecord(path.stat().st_size, sha256_of(path))
    name = source.name if source.revision else source.directory.resolve().name
    licences = {"checkpoint": licence_of(source.directory)}
    if adapter is not None:
        licences["adapter"] = licence_of(adapter)
    card = Card(
        task=task,
        precision=precision,
        source=name,
        revision=source.revision,
        family=original,
        languages=languages or known,
        versions={
            "m2m100-onnx": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        files=files,
        adapter=adapter.name if adapter else None,
        licences=licences,
    )
    (work / CARD_FILE).write_text(card.text(), encoding="utf-8")
    manifest = Manifest(
        precision=precision,
        opset=opset_of(precision),
        source=name,
        revision=source.revision,
        languages=languages,
        family=family,
        adapter=adapter.name if adapter else None,
        kind=kind,
        exporter_version=__version__,
        graphs=graphs,
        files=files,
    )
    manifest.write(work)
