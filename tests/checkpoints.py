"""Makes variants of a checkpoint folder, and lists the contents of a folder, for the tests."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx_export import export

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def tree(folder: Path) -> dict[str, str]:
    """Returns the hash of every file below a folder, by relative path; folders count too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def weights_of(checkpoint: Path, bundle: Path, **options: Any) -> bytes:
    export(checkpoint, bundle, verify_outputs=False, **options)
    return (bundle / WEIGHTS_FILE).read_bytes()


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def as_pickle(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / PICKLE)


def shards(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    names = sorted(state)
    return [{n: state[n] for n in names[::2]}, {n: state[n] for n in names[1::2]}]


def write_sharded(folder: Path, single: str, state: dict[str, torch.Tensor], save: Any) -> None:
    stem, suffix = single.split(".")
    weight_map = {}
    for number, part in enumerate(shards(state), 1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / f"{single}.index.json").write_text(json.dumps(index))


def randomise(model: Any, rows: slice | None = None) -> Any:
    """Fills a model of M2M100's architecture so that a mix-up of its tensors shows.

    transformers initialises biases and norms to 0 and 1, and transformers 5 unties the embeddings
    of the two sides, which published checkpoints share.

    Args:
        model: an `M2M100ForConditionalGeneration`.
        rows: the embedding rows to fill anew; the other tensors then stay as they are.
    """
    with torch.no_grad():
        if rows is None:
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
                elif "layer_norm" in name:
                    parameter.normal_(1, 0.3)
        else:
            table = model.model.shared.weight
            table[rows].normal_(std=float(table[: rows.start].std()))
        for side in (model.model.encoder, model.model.decoder):
            side.embed_tokens.weight.copy_(model.model.shared.weight)
    return model.eval()
