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
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranking
from m2m100_onnx_export.verify import TOLERANCE, Report
from m2m100_onnx_export.xlm_checkpoint import XLMCheckpoint

__all__ = ["load_reference", "verify"]

_TEXTS, _LENGTH, _PROMPT = 3, 12, 5


def verify(checkpoint: XLMCheckpoint, bundle: Path, precision: Precision) -> Report:
    """Measures the differences between a bundle and PyTorch on the bundle's checkpoint.

    The texts are random tokens, since a mix-up of tensors shows on any. The cache is compared at
    each position of a text that goes on from its first tokens.
    """
    model = load_reference(checkpoint)
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
    differences, sizes = {}, {}
    real = mask.astype(bool)
    if config.has_head:
        assert logits is not None
        found = graphs.run(ids, mask, langs)
        differences[MODEL_FILE] = float(np.abs(found - logits)[real].max())
        sizes[MODEL_FILE] = float(np.abs(logits[real]).max())
    name = f"{MODEL_FILE} (hidden states)"
    found = graphs.run(ids, mask, langs, "last_hidden_state")
    differences[name] = float(np.abs(found - hidden)[real].max())
    sizes[name] = float(np.abs(hidden[real]).max())
    if opened.can_generate:
        assert logits is not None
        wanted = torch.from_numpy(logits).log_softmax(-1).numpy()
        for fused in (True, False) if graphs.fused else (False,):
            kind = "fused" if fused else "portable"
            stepping = LanguageGraphs(opened, fused=fused, cache_dir=False)
            scores = _step_through(stepping, ids[1:], langs[1:, 0])
            expected = wanted[1:, _PROMPT - 1 :]
            differences[f"cache, {kind}"] = float(np.abs(scores - expected).max())
            sizes[f"cache, {kind}"] = float(np.abs(expected).max())
    tolerances = {name: TOLERANCE[precision] * size for name, size in sizes.items()}
    return Report(differences, tolerances, ())


def load_reference(checkpoint: XLMCheckpoint) -> transformers.PreTrainedModel:
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
    vocab_size = graphs.bundle.config.vocab_size
    state = graphs.begin(np.ascontiguousarray(ids[:, :_PROMPT]), langs)
    found = []
    for position in range(_PROMPT, _LENGTH + 1):
        ranked = state.best(Ranking(count=vocab_size))
        scores = np.empty_like(ranked.scores)
        np.put_along_axis(scores, ranked.tokens, ranked.scores, axis=1)
        found.append(scores)
        if position < _LENGTH:
            state.step(ids[:, position : position + 1])
    return np.stack(found, axis=1)
