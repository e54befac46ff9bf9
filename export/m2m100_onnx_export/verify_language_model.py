"""Verification of a language model's bundle: compares it with PyTorch, graph by graph.

The reference is transformers' model on the same checkpoint. The other side is the bundle as a user
runs it. Refuses to know how graphs are built.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.language_graphs import MODEL_FILE
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.model.causal import LanguageGraphs
from m2m100_onnx.search.state import Float32Array, Int64Array
from m2m100_onnx_export.verify import TOLERANCE, Report, all_log_probs
from m2m100_onnx_export.xlm_checkpoint import XLMCheckpoint

__all__ = ["verify"]

_TEXTS, _LENGTH, _PROMPT = 3, 12, 5


def verify(checkpoint: XLMCheckpoint, bundle: Path, precision: Precision) -> Report:
    """Measures the differences between a bundle and PyTorch on the bundle's checkpoint.

    The texts are random tokens, since a mix-up of tensors shows on any. The cache is compared at
    each position of a text that goes on from its first tokens.
    """
    model = _load_reference(checkpoint)
    if precision == "fp16":
        # The reference has rounded weights too, so the comparison is of the arithmetic alone.
        model = model.half().float()
    opened = LanguageModelBundle.open(bundle)
    graphs = LanguageGraphs(opened, cache_dir=False)
    config = checkpoint.config
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (_TEXTS, _LENGTH))
    ids[ids == config.pad_token_id] = config.eos_token_id
    # Without languages, transformers reads none either.
    langs = np.repeat(random.integers(0, config.languages + 1, (_TEXTS, 1)), _LENGTH, axis=1)
    mask = np.ones_like(ids)
    mask[0, _LENGTH - 3 :] = 0
    ids[0, _LENGTH - 3 :] = config.pad_token_id
    hidden, logits = _reference(model, ids, mask, langs, config.languages)
    real = mask.astype(bool)
    # What each graph gives, and what PyTorch gives.
    pairs: dict[str, tuple[Float32Array, Float32Array]] = {}
    if logits is not None:
        pairs[MODEL_FILE] = graphs.run(ids, mask, langs)[real], logits[real]
    states = graphs.run(ids, mask, langs, "last_hidden_state")
    pairs[f"{MODEL_FILE} (hidden states)"] = states[real], hidden[real]
    if logits is not None and config.can_generate:
        wanted = torch.from_numpy(logits[1:, _PROMPT - 1 :]).log_softmax(-1).numpy()
        for fused in (True, False) if graphs.fused else (False,):
            stepping = LanguageGraphs(opened, fused=fused, cache_dir=False)
            found = _step_through(stepping, ids[1:], langs[1:, 0])
            pairs[f"cache, {'fused' if fused else 'portable'}"] = found, wanted
    differences = {
        name: float(np.abs(ours - theirs).max()) for name, (ours, theirs) in pairs.items()
    }
    sizes = {name: float(np.abs(theirs).max()) for name, (_, theirs) in pairs.items()}
    tolerances = {name: TOLERANCE[precision] * size for name, size in sizes.items()}
    return Report(differences, tolerances, ())


def _load_reference(checkpoint: XLMCheckpoint) -> transformers.PreTrainedModel:
    """Returns transformers' model, which sees what the bundle's tokens see."""
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.XLMWithLMHeadModel if checkpoint.config.has_head else transformers.XLMModel
    model = kind.from_pretrained(
        checkpoint.directory, dtype=torch.float32, causal=checkpoint.config.causal
    )
    return model.eval()


def _reference(
    model: transformers.PreTrainedModel,
    ids: Int64Array,
    mask: Int64Array,
    langs: Int64Array,
    languages: int,
) -> tuple[Float32Array, Float32Array | None]:
    """Returns PyTorch's `(B, S, D)` outputs of the last layer, and `(B, S, V)` logits."""
    inner = getattr(model, "transformer", model)
    hidden = []
    with torch.inference_mode():
        for row, seen, lang in zip(ids, mask, langs, strict=True):
            # The id after the last language stands for none.
            given = torch.from_numpy(lang[None]) if lang[0] < languages else None
            output = inner(
                input_ids=torch.from_numpy(row[None]),
                attention_mask=torch.from_numpy(seen[None]),
                langs=given,
            )
            hidden.append(output.last_hidden_state[0])
        states = torch.stack(hidden)
        logits = model.pred_layer.proj(states) if hasattr(model, "pred_layer") else None
    return states.numpy(), None if logits is None else logits.numpy()


def _step_through(graphs: LanguageGraphs, ids: Int64Array, langs: Int64Array) -> Float32Array:
    """Returns `(B, T, V)` log-probabilities of tokens that follow a prompt one by one."""
    state = graphs.begin(np.ascontiguousarray(ids[:, :_PROMPT]), langs)
    found = []
    for position in range(_PROMPT, _LENGTH + 1):
        found.append(all_log_probs(state, len(ids)))
        if position < _LENGTH:
            state.step(ids[:, position : position + 1])
    return np.stack(found, axis=1)
