"""What the recipes of all kinds of bundles write alike: config.json, and the manifest at the end.

Refuses to know tensors, nodes and tokenizers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from m2m100_onnx import __version__
from m2m100_onnx.bundle.config import CONFIG_FILE, read_json
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import Precision, Signature
from m2m100_onnx.bundle.manifest import FileRecord, Kind, Manifest, sha256_of
from m2m100_onnx_export.card import Use, write_card
from m2m100_onnx_export.graphs.builder import opset_of
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
    use: Use,
    kind: Kind = "translation",
    languages: tuple[str, ...] | None = None,
    family: str | None = None,
    adapter: str | None = None,
) -> None:
    """Checks the graphs, and writes the manifest and the model card, the last files of a bundle.

    Args:
        work: the bundle's folder, with all other files.
        source: where the checkpoint lies.
        precision: the weights' precision.
        weights: the record of the weights file, which is not read again.
        graphs: the inputs and outputs of each graph.
        use: what the bundle is for.
        kind: what the graphs are.
        languages: the codes that the checkpoint was trained on, or None for all.
        family: a name in `FAMILIES`.
        adapter: the name of the adapter's folder that was merged in.
    """
    for name in graphs:
        onnx.checker.check_model(os.fspath(work / name))
    files = {WEIGHTS_FILE: weights}
    for path in sorted(work.iterdir()):
        if path.name not in files:
            files[path.name] = FileRecord(path.stat().st_size, sha256_of(path))
    manifest = Manifest(
        precision=precision,
        opset=opset_of(precision),
        source=source.name if source.revision else source.directory.resolve().name,
        revision=source.revision,
        languages=languages,
        family=family,
        adapter=adapter,
        kind=kind,
        exporter_version=__version__,
        graphs=graphs,
        files=files,
    )
    manifest.write(work)
    write_card(work, manifest, use, source.directory)
