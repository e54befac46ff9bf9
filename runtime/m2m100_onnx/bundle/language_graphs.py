"""The inputs and outputs of each graph of a language model's bundle.

The exporter writes these signatures and the runtime checks them. `model.onnx` takes whole texts. A
causal bundle has a cache: `model.onnx` is also its prefill, and `model_with_past.onnx` its step,
both in standard operators. Three fused graphs do the same with onnxruntime's own attention
operators, on a CPU. All share one weights file. Refuses to know nodes and weights.

Shapes: B texts, S tokens of a text, P past tokens, T new tokens, R rows of a search.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2m100_onnx.bundle.graphs import (
    FUSED_RANK_FILE,
    FUSED_STEP_FILE,
    Precision,
    Signature,
    TensorSpec,
    rank_signature,
)

__all__ = [
    "FUSED_FILES",
    "FUSED_PREFILL_FILE",
    "MODEL_FILE",
    "MODEL_WITH_PAST_FILE",
    "Sizes",
    "graph_signature",
]

MODEL_FILE = "model.onnx"
MODEL_WITH_PAST_FILE = "model_with_past.onnx"
FUSED_PREFILL_FILE = "fused_prefill.onnx"
FUSED_FILES = (FUSED_PREFILL_FILE, FUSED_STEP_FILE, FUSED_RANK_FILE)

_TEXT = ("batch_size", "sequence_length")
_BUFFER = ("rows", "max_length")


@dataclass(frozen=True)
class Sizes:
    """The sizes that signatures depend on.

    Attributes:
        vocab_size: V; 0 without an LM head.
        d_model: D.
        layers: the number of layers.
        heads: attention heads of a layer.
        causal: whether there are graphs with a cache.
    """

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    causal: bool


def graph_signature(file: str, sizes: Sizes, precision: Precision) -> Signature:
    """Returns the inputs and outputs of a graph.

    `langs` holds a language id at each position. The id after the last language stands for none.

    Args:
        file: the graph's file name.
        sizes: the model's sizes.
        precision: the weights' precision.
    """
    real = "float16" if precision == "fp16" else "float32"
    if file == FUSED_RANK_FILE:
        return rank_signature(sizes.d_model, real)
    makers = {
        MODEL_FILE: _model,
        MODEL_WITH_PAST_FILE: _model_with_past,
        FUSED_PREFILL_FILE: _fused_prefill,
        FUSED_STEP_FILE: _fused_step,
    }
    return makers[file](sizes, real)


def _cache(sizes: Sizes, real: str, kind: str, rows: str, length: str) -> tuple[TensorSpec, ...]:
    """Returns the keys and values of every layer, `past_key_values` or `present`."""
    shape = (rows, sizes.heads, length, sizes.d_model // sizes.heads)
    return tuple(
        TensorSpec(f"{kind}.{layer}.{name}", real, shape)
        for layer in range(sizes.layers)
        for name in ("key", "value")
    )


def _ids(*axes: int | str) -> tuple[TensorSpec, ...]:
    return TensorSpec("input_ids", "int64", axes), TensorSpec("langs", "int64", axes)


def _model(sizes: Sizes, real: str) -> Signature:
    ids, langs = _ids(*_TEXT)
    outputs = [TensorSpec("last_hidden_state", real, (*_TEXT, sizes.d_model))]
    if sizes.vocab_size:
        outputs.insert(0, TensorSpec("logits", real, (*_TEXT, sizes.vocab_size)))
        if sizes.causal:
            outputs += _cache(sizes, real, "present", *_TEXT)
    return Signature((ids, TensorSpec("attention_mask", "int64", _TEXT), langs), tuple(outputs))


def _model_with_past(sizes: Sizes, real: str) -> Signature:
    rows, past = "batch_size", "past_sequence_length"
    outputs = (
        TensorSpec("logits", real, (*_TEXT, sizes.vocab_size)),
        *_cache(sizes, real, "present", rows, f"{past} + {_TEXT[1]}"),
    )
    return Signature((*_ids(*_TEXT), *_cache(sizes, real, "past_key_values", rows, past)), outputs)


def _fused_prefill(sizes: Sizes, real: str) -> Signature:
    """Describes the prefill graph: prompts of one length in, their keys and values out."""
    return Signature(_ids(*_TEXT), _cache(sizes, real, "present", *_TEXT))


def _fused_step(sizes: Sizes, real: str) -> Signature:
    """Describes the step graph: one token a row in, the output of the last layer out.

    The graph writes the new keys and values into the buffers that it reads, so past and present
    must be one tensor.
    """
    inputs = (
        *_ids("rows", 1),
        TensorSpec("past_length", "int32", (1,)),
        TensorSpec("beam_size", "int32", (1,)),
        TensorSpec("cache_indirection", "int32", ("batch_size", "beams", "max_length")),
        *_cache(sizes, real, "past_key_values", *_BUFFER),
    )
    outputs = (
        TensorSpec("hidden_states", real, ("rows", sizes.d_model)),
        *_cache(sizes, real, "present", *_BUFFER),
    )
    return Signature(inputs, outputs)
