"""The inputs and outputs of each graph of a language model's bundle.

The exporter writes these signatures and the runtime checks them. `model.onnx` takes whole texts. A
causal bundle has a cache: `model.onnx` is also its prefill, and `model_with_past.onnx` its step,
both in standard operators. Three fused graphs do the same with onnxruntime's own attention
operators, on a CPU. All share one weights file. Refuses to know nodes and weights.

Shapes: B texts, S tokens of a text, P past tokens, T new tokens, R rows of a search.
"""

from __future__ import annotations

from m2m100_onnx.bundle.graphs import (
    FUSED_RANK_FILE,
    FUSED_STEP_FILE,
    Precision,
    Signature,
    TensorSpec,
    rank_signature,
)
from m2m100_onnx.bundle.language_config import LanguageModelConfig

__all__ = [
    "FUSED_FILES",
    "FUSED_PREFILL_FILE",
    "MODEL_FILE",
    "MODEL_WITH_PAST_FILE",
    "graph_signature",
    "portable_files",
]

MODEL_FILE = "model.onnx"
MODEL_WITH_PAST_FILE = "model_with_past.onnx"
FUSED_PREFILL_FILE = "fused_prefill.onnx"
FUSED_FILES = (FUSED_PREFILL_FILE, FUSED_STEP_FILE, FUSED_RANK_FILE)

_TEXT = ("batch_size", "sequence_length")
_BUFFER = ("rows", "max_length")


def portable_files(config: LanguageModelConfig) -> tuple[str, ...]:
    """Returns the graphs in standard operators that a model has."""
    return (MODEL_FILE, MODEL_WITH_PAST_FILE) if config.can_generate else (MODEL_FILE,)


def graph_signature(file: str, config: LanguageModelConfig, precision: Precision) -> Signature:
    """Returns the inputs and outputs of a graph.

    `langs` holds a language id at each position. The id after the last language stands for none.

    Args:
        file: the graph's file name.
        config: the facts of config.json.
        precision: the weights' precision.
    """
    real = "float16" if precision == "fp16" else "float32"
    if file == FUSED_RANK_FILE:
        return rank_signature(config.d_model, real)
    makers = {
        MODEL_FILE: _model,
        MODEL_WITH_PAST_FILE: _model_with_past,
        FUSED_PREFILL_FILE: _fused_prefill,
        FUSED_STEP_FILE: _fused_step,
    }
    return makers[file](config, real)


def _cache(
    config: LanguageModelConfig, real: str, kind: str, rows: str, length: str
) -> tuple[TensorSpec, ...]:
    """Returns the keys and values of every layer, `past_key_values` or `present`."""
    shape = (rows, config.heads, length, config.d_model // config.heads)
    return tuple(
        TensorSpec(f"{kind}.{layer}.{name}", real, shape)
        for layer in range(config.layers)
        for name in ("key", "value")
    )


def _ids(*axes: int | str) -> tuple[TensorSpec, ...]:
    return TensorSpec("input_ids", "int64", axes), TensorSpec("langs", "int64", axes)


def _model(config: LanguageModelConfig, real: str) -> Signature:
    ids, langs = _ids(*_TEXT)
    outputs = [TensorSpec("last_hidden_state", real, (*_TEXT, config.d_model))]
    if config.has_head:
        outputs.insert(0, TensorSpec("logits", real, (*_TEXT, config.vocab_size)))
    if config.can_generate:
        outputs += _cache(config, real, "present", *_TEXT)
    return Signature((ids, TensorSpec("attention_mask", "int64", _TEXT), langs), tuple(outputs))


def _model_with_past(config: LanguageModelConfig, real: str) -> Signature:
    rows, past = "batch_size", "past_sequence_length"
    outputs = (
        TensorSpec("logits", real, (*_TEXT, config.vocab_size)),
        *_cache(config, real, "present", rows, f"{past} + {_TEXT[1]}"),
    )
    return Signature((*_ids(*_TEXT), *_cache(config, real, "past_key_values", rows, past)), outputs)


def _fused_prefill(config: LanguageModelConfig, real: str) -> Signature:
    """Describes the prefill graph: prompts of one length in, their keys and values out."""
    return Signature(_ids(*_TEXT), _cache(config, real, "present", *_TEXT))


def _fused_step(config: LanguageModelConfig, real: str) -> Signature:
    """Describes the step graph: one token a row in, the output of the last layer out.

    The graph writes the new keys and values into the buffers that it reads, so past and present
    must be one tensor.
    """
    inputs = (
        *_ids("rows", 1),
        TensorSpec("past_length", "int32", (1,)),
        TensorSpec("beam_size", "int32", (1,)),
        TensorSpec("cache_indirection", "int32", ("batch_size", "beams", "max_length")),
        *_cache(config, real, "past_key_values", *_BUFFER),
    )
    outputs = (
        TensorSpec("hidden_states", real, ("rows", config.d_model)),
        *_cache(config, real, "present", *_BUFFER),
    )
    return Signature(inputs, outputs)
