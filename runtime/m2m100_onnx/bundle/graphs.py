"""The inputs and outputs of each graph of a bundle: file names, tensor names, types and axes.

The exporter writes these signatures and the runtime checks them. A bundle has up to three sets of
graphs over one weights file. The three portable graphs use standard operators and Optimum's names,
and any ONNX runtime can open them. The three fused graphs use onnxruntime's own attention
operators, and the runtime prefers them on a CPU. The three native graphs, with the same inputs and
outputs, use the operators of `m2m100-onnx-kernels`. Refuses to know nodes and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from m2m100_onnx.bundle.config import ModelConfig

__all__ = [
    "CROSS_ATTENTION_FILE",
    "DECODER_FILE",
    "DECODER_WITH_PAST_FILE",
    "ENCODER_FILE",
    "FOUR_BITS",
    "FUSED_FILES",
    "FUSED_RANK_FILE",
    "FUSED_SOURCE_FILE",
    "FUSED_STEP_FILE",
    "GRAPH_FILES",
    "NATIVE_FILES",
    "NATIVE_FP16_STEP_FILE",
    "NATIVE_RANK_FILE",
    "NATIVE_SOURCE_FILE",
    "NATIVE_STEP_FILE",
    "OPERATORS_VERSION",
    "PRECISIONS",
    "Precision",
    "Signature",
    "TensorSpec",
    "graph_signature",
    "rank_signature",
]

ENCODER_FILE = "encoder_model.onnx"
DECODER_FILE = "decoder_model.onnx"
DECODER_WITH_PAST_FILE = "decoder_with_past_model.onnx"
# Whole targets in, attention weights out; opened for alignments alone.
CROSS_ATTENTION_FILE = "cross_attention.onnx"
GRAPH_FILES = (ENCODER_FILE, DECODER_FILE, DECODER_WITH_PAST_FILE)
# Optimum and transformers.js look for "encoder" and "decoder" in file names, so these have neither.
FUSED_SOURCE_FILE = "fused_source.onnx"
FUSED_STEP_FILE = "fused_step.onnx"
FUSED_RANK_FILE = "fused_rank.onnx"
FUSED_FILES = (FUSED_SOURCE_FILE, FUSED_STEP_FILE, FUSED_RANK_FILE)
NATIVE_SOURCE_FILE = "native_source.onnx"
NATIVE_STEP_FILE = "native_step.onnx"
NATIVE_RANK_FILE = "native_rank.onnx"
# The step graph with keys and values of 16 bits, in the place of the other where they are wanted.
NATIVE_FP16_STEP_FILE = "native_step_fp16_cache.onnx"
NATIVE_FILES = (NATIVE_SOURCE_FILE, NATIVE_STEP_FILE, NATIVE_RANK_FILE)
OPERATORS_VERSION = 1
"""The version of the operators in native graphs; a newer one is refused by its name."""

Precision = Literal["fp32", "fp16", "int8", "int4", "int4-int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4", "int4-int8")
FOUR_BITS: tuple[Precision, ...] = ("int4", "int4-int8")
"""The precisions whose layers have four bits."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph: its name, element type and axes.

    An axis is a length, or a name where the length is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs and the outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


# Axes that several graphs have. The names of the portable graphs' axes are Optimum's.
_SOURCE = ("batch_size", "encoder_sequence_length")
_TARGET = ("batch_size", "decoder_sequence_length")
_BUFFER = ("rows", "max_length")


def graph_signature(file: str, config: ModelConfig, precision: Precision) -> Signature:
    """Returns the inputs and outputs of a graph.

    The portable graphs have Optimum's names, with one deliberate difference. Optimum fixes the
    target axis of the third graph's `logits` to the name '1'. Here it is the length of `input_ids`,
    since the graph takes several tokens at once.

    Args:
        file: a name in `GRAPH_FILES`, `FUSED_FILES` or `NATIVE_FILES`, or
            `NATIVE_FP16_STEP_FILE` or `CROSS_ATTENTION_FILE`.
        config: the model's sizes.
        precision: the weights' precision.
    """
    # Activations are float32 even where weights have fewer bits.
    real = "float16" if precision == "fp16" else "float32"
    makers: dict[str, Callable[[ModelConfig, str], Signature]] = {
        ENCODER_FILE: _encoder,
        DECODER_FILE: _decoder,
        DECODER_WITH_PAST_FILE: _decoder_with_past,
        CROSS_ATTENTION_FILE: _cross_attention,
        FUSED_SOURCE_FILE: _fused_source,
        FUSED_STEP_FILE: _fused_step,
        NATIVE_SOURCE_FILE: _fused_source,
        NATIVE_STEP_FILE: _native_step,
        NATIVE_FP16_STEP_FILE: partial(_native_step, cache="float16"),
    }
    if file in (FUSED_RANK_FILE, NATIVE_RANK_FILE):
        return rank_signature(config.d_model, real)
    return makers[file](config, real)


def _cache(
    config: ModelConfig, real: str, kind: str, **axes: tuple[str, str]
) -> tuple[TensorSpec, ...]:
    """Returns the keys and values of every layer.

    Args:
        config: the model's sizes.
        real: their element type.
        kind: `past_key_values` or `present`.
        **axes: the rows and the length of the parts, `decoder` for self-attention and `encoder` for
            cross-attention.
    """
    heads = config.decoder_attention_heads
    return tuple(
        TensorSpec(
            f"{kind}.{layer}.{part}.{name}", real, (rows, heads, length, config.d_model // heads)
        )
        for layer in range(config.decoder_layers)
        for part, (rows, length) in axes.items()
        for name in ("key", "value")
    )


def _encoder(config: ModelConfig, real: str) -> Signature:
    return Signature(
        (
            TensorSpec("input_ids", "int64", _SOURCE),
            TensorSpec("attention_mask", "int64", _SOURCE),
        ),
        (TensorSpec("last_hidden_state", real, (*_SOURCE, config.d_model)),),
    )


def _grown(config: ModelConfig, real: str, **axes: tuple[str, str]) -> tuple[TensorSpec, ...]:
    """Returns the outputs of both decoder graphs: logits, and the cache with the new tokens."""
    length = f"past_decoder_sequence_length + {_TARGET[1]}"
    logits = TensorSpec("logits", real, (*_TARGET, config.vocab_size))
    return logits, *_cache(config, real, "present", decoder=("batch_size", length), **axes)


def _decoder(config: ModelConfig, real: str) -> Signature:
    inputs = (
        TensorSpec("encoder_attention_mask", "int64", _SOURCE),
        TensorSpec("input_ids", "int64", _TARGET),
        TensorSpec("encoder_hidden_states", real, (*_SOURCE, config.d_model)),
    )
    return Signature(inputs, _grown(config, real, encoder=_SOURCE))


def _cross_attention(config: ModelConfig, real: str) -> Signature:
    """Describes the graph of a target's attention to its source, `(B, H, T, S)` of each layer."""
    axes = ("batch_size", config.decoder_attention_heads, _TARGET[1], _SOURCE[1])
    outputs = tuple(
        TensorSpec(f"cross_attentions.{layer}", real, axes)
        for layer in range(config.decoder_layers)
    )
    return Signature(_decoder(config, real).inputs, outputs)


def _decoder_with_past(config: ModelConfig, real: str) -> Signature:
    past = ("batch_size", "past_decoder_sequence_length")
    inputs = (
        TensorSpec("encoder_attention_mask", "int64", _SOURCE),
        TensorSpec("input_ids", "int64", _TARGET),
        *_cache(config, real, "past_key_values", decoder=past, encoder=_SOURCE),
    )
    return Signature(inputs, _grown(config, real))


def _fused_source(config: ModelConfig, real: str) -> Signature:
    """Describes the source graph: the keys and values that each decoder layer makes of a source."""
    inputs = (
        TensorSpec("input_ids", "int64", _SOURCE),
        TensorSpec("attention_mask", "int64", _SOURCE),
    )
    return Signature(inputs, _cache(config, real, "present", encoder=_SOURCE))


def _fused_step(config: ModelConfig, real: str, cache: str | None = None) -> Signature:
    """Describes the step graph: one token a row in, the output of the last layer out.

    The graph writes the new keys and values into the buffers that it reads, so past and present
    must be one tensor. Their element type is `cache`, that of activations by default.
    """
    cache = cache or real
    inputs = (
        TensorSpec("input_ids", "int64", ("rows", 1)),
        TensorSpec("past_length", "int32", (1,)),
        TensorSpec("beam_size", "int32", (1,)),
        TensorSpec("cache_indirection", "int32", ("batch_size", "beams", "max_length")),
        TensorSpec("encoder_attention_mask", "int64", _SOURCE),
        *_cache(config, cache, "past_key_values", decoder=_BUFFER),
        *_cache(config, cache, "past_key_values", encoder=_SOURCE),
    )
    outputs = (
        TensorSpec("hidden_states", real, ("rows", config.d_model)),
        *_cache(config, cache, "present", decoder=_BUFFER),
    )
    return Signature(inputs, outputs)


def _native_step(config: ModelConfig, real: str, cache: str | None = None) -> Signature:
    """Describes the native step graph: a past length for each row, or one for all."""
    fused = _fused_step(config, real, cache)
    lengths = TensorSpec("past_length", "int32", ("lengths",))
    inputs = tuple(lengths if spec.name == lengths.name else spec for spec in fused.inputs)
    return Signature(inputs, fused.outputs)


def rank_signature(d_model: int, real: str) -> Signature:
    """Returns the inputs and outputs of the rank graph: LM head and choice of the next tokens.

    The graph returns the `count` best tokens of each row and the log-probabilities of the cells
    `seen`. If `renormalized`, it applies the repetition penalty and the bans before the softmax,
    and no cell may be both seen and banned. Otherwise the caller applies them. The LM head is a
    graph of its own so that two cores open the weights at once, and so that a prompt's first tokens
    skip it. Translation models and language models have the same.

    Args:
        d_model: D, the width.
        real: the type of activations; scores are float32.
    """
    return Signature(
        (
            TensorSpec("hidden_states", real, ("rows", d_model)),
            TensorSpec("count", "int64", (1,)),
            TensorSpec("repetition_penalty", "float32", ()),
            TensorSpec("seen", "int64", ("seen_cells", 2)),
            TensorSpec("banned", "int64", ("banned_cells", 2)),
            TensorSpec("renormalized", "bool", ()),
        ),
        (
            TensorSpec("scores", "float32", ("rows", "best")),
            TensorSpec("tokens", "int64", ("rows", "best")),
            TensorSpec("seen_scores", "float32", ("seen_cells",)),
        ),
    )
