"""PyTorch's model of a checkpoint, which a bundle is compared with.

Knows how transformers and PEFT load what the exporter reads. Refuses to know bundles.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx_export.adapter import SHARED, Adapter
from m2m100_onnx_export.checkpoint import Checkpoint

__all__ = ["load_reference"]


def load_reference(checkpoint: Checkpoint) -> tuple[M2M100ForConditionalGeneration, str]:
    """Returns the float32 model of a checkpoint and its adapter, and who merged the adapter.

    PEFT merges the adapter. Where PEFT is not installed, the model has the numbers that the
    exporter merged, and the comparison does not cover the merge.
    """
    transformers.utils.logging.disable_progress_bar()
    model = M2M100ForConditionalGeneration.from_pretrained(
        # Other implementations of attention do not tell its weights.
        checkpoint.directory,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    _load_tables(model, checkpoint)
    if checkpoint.adapter is None:
        return model.eval(), ""
    if importlib.util.find_spec("peft") is None:
        _load_merged(model, checkpoint)
        return model.eval(), "the exporter itself, since peft is not installed"
    return _merge_with_peft(model, checkpoint.adapter).eval(), "peft"


def _load_tables(model: Any, checkpoint: Checkpoint) -> None:
    """Gives a model the tables that transformers leaves out.

    Those are learned positions: the module looks rows up as one with learned positions does, in the
    table that it computed. transformers 5 also leaves embeddings at random that transformers 4 did
    not store: with an LM head of its own, it stored one embedding for encoder and decoder.
    """
    for side in ("encoder", "decoder"):
        module = getattr(model.model, side)
        name = f"model.{side}.embed_positions.weight"
        if name in checkpoint:
            module.embed_positions.weights = checkpoint.rows(name).float()
        if f"model.{side}.embed_tokens.weight" not in checkpoint and SHARED in checkpoint:
            module.embed_tokens.weight = model.model.shared.weight


def _merge_with_peft(model: Any, adapter: Adapter) -> Any:
    from peft import PeftModel

    inner = model.model if adapter.is_bare else model
    merged = PeftModel.from_pretrained(inner, adapter.directory).merge_and_unload()
    if not adapter.is_bare:
        return merged
    model.model = merged
    return model


def _load_merged(model: Any, checkpoint: Checkpoint) -> None:
    """Gives a model the tensors of a checkpoint, and unties its embeddings."""
    parts = {"encoder": model.model.encoder, "decoder": model.model.decoder, "head": model}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" not in name and name not in ("model.shared.weight", "lm_head.weight"):
                parameter.copy_(checkpoint.rows(name))
        for part, source in checkpoint.embeddings().items():
            table = torch.nn.Parameter(checkpoint.rows(source).float())
            module = parts[part].lm_head if part == "head" else parts[part].embed_tokens
            module.weight = table
