"""What each graph of a bundle takes and gives: file names, tensor names, types and axes.

Exporter and runtime share this one table. There are two sets of graphs over one weights file. The
portable three use standard operators and Optimum's names, and open anywhere. The fused three are
what the runtime prefers on a CPU: their attention operators are onnxruntime's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from m2m100_onnx.config import ModelConfig

__all__ = [
    "DECODER_FILE",
    "DECODER_WITH_PAST_FILE",
    "ENCODER_FILE",
    "FOUR_BITS",
    "FUSED_FILES",
    "FUSED_RANK_FILE",
    "FUSED_SOURCE_FILE",
    "FUSED_STEP_FILE",
    "GRAPH_FILES",
    "PRECISIONS",
    "Precision",
    "Signature",
    "TensorSpec",
    "graph_signature",
]

ENCODER_FILE = "encoder_model.onnx"
DECODER_FILE = "decoder_model.onnx"
DECODER_WITH_PAST_FILE = "decoder_with_past_model.onnx"
GRAPH_FILES = (ENCODER_FILE, DECODER_FILE, DECODER_WITH_PAST_FILE)
# No name that holds "encoder" or "decoder": Optimum and transformers.js look for those.
FUSED_SOURCE_FILE = "fused_source.onnx"
FUSED_STEP_FILE = "fused_step.onnx"
FUSED_RANK_FILE = "fused_rank.onnx"
FUSED_FILES = (FUSED_SOURCE_FILE, FUSED_STEP_FILE, FUSED_RANK_FILE)

Precision = Literal["fp32", "fp16", "int8", "int4", "int4-int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4", "int4-int8")
FOUR_BITS: tuple[Precision, ...] = ("int4", "int4-int8")
"""Those whose layers have four bits, whatever their embedding has."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: its name, element type and axes (a name is a free axis)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def graph_signature(file: str, config: ModelConfig, precision: Precision) -> Signature:
    """The inputs and outputs of a graph; those of the portable three are as Optimum names them.

    One deliberate difference: Optimum fixes the target axis of the third graph's `logits` to the
    name '1'; here it is the length of `input_ids`, since several tokens may be fed at once.
    """
    # Of activations; fewer bits are only how weights are stored and multiplied.
    real = "float16" if precision == "fp16" else "float32"
    if file in FUSED_FILES:
        return _fused_signature(file, config, real)
    source = ("batch_size", "encoder_sequence_length")
    target = ("batch_size", "decoder_sequence_length")
    hidden = TensorSpec("encoder_hidden_states", real, (*source, config.d_model))
    if file == ENCODER_FILE:
        return Signature(
            (
                TensorSpec("input_ids", "int64", source),
                TensorSpec("attention_mask", "int64", source),
            ),
            (TensorSpec("last_hidden_state", real, (*source, config.d_model)),),
        )
    heads = config.decoder_attention_heads
    size = config.d_model // heads
    past, now = "past_decoder_sequence_length", "decoder_sequence_length"

    def cache(prefix: str, part: str, length: str) -> Iterator[tuple[int, TensorSpec]]:
        shape = ("batch_size", heads, length, size)
        for layer in range(config.decoder_layers):
            for kind in ("key", "value"):
                yield layer, TensorSpec(f"{prefix}.{layer}.{part}.{kind}", real, shape)

    def by_layer(*groups: Iterator[tuple[int, TensorSpec]]) -> tuple[TensorSpec, ...]:
        flat = [pair for group in groups for pair in group]
        return tuple(spec for _, spec in sorted(flat, key=lambda pair: pair[0]))

    mask = TensorSpec("encoder_attention_mask", "int64", source)
    ids = TensorSpec("input_ids", "int64", target)
    logits = TensorSpec("logits", real, (*target, config.vocab_size))
    grown = cache("present", "decoder", f"{past} + {now}")
    if file == DECODER_FILE:
        return Signature(
            (mask, ids, hidden),
            (logits, *by_layer(grown, cache("present", "encoder", source[1]))),
        )
    own = cache("past_key_values", "decoder", past)
    cross = cache("past_key_values", "encoder", source[1])
    return Signature((mask, ids, *by_layer(own, cross)), (logits, *by_layer(grown)))


def _fused_signature(file: str, config: ModelConfig, real: str) -> Signature:
    """The inputs and outputs of the fused graphs.

    The source graph gives the keys and values that every decoder layer computes from the source.
    The step graph feeds one token a row and gives the last layer's output. It writes the new keys
    and values into the buffers it is given, so past and present must be one tensor.
    The rank graph, which is the LM head, gives the best next tokens and the log-probabilities of
    the `seen` cells. If `renormalized`, it applies the penalty and the bans, before the softmax,
    and no cell may be both seen and banned; else its user must apply them. It is a graph apart, so
    that two cores share the opening of the weights, and a prompt's first tokens need not pass it.
    """
    if file == FUSED_RANK_FILE:
        return Signature(
            (
                TensorSpec("hidden_states", real, ("rows", config.d_model)),
                TensorSpec("count", "int64", (1,)),
                TensorSpec("repetition_penalty", real, ()),
                TensorSpec("seen", "int64", ("seen_cells", 2)),
                TensorSpec("banned", "int64", ("banned_cells", 2)),
                TensorSpec("renormalized", "bool", ()),
            ),
            (
                TensorSpec("scores", real, ("rows", "best")),
                TensorSpec("tokens", "int64", ("rows", "best")),
                TensorSpec("seen_scores", real, ("seen_cells",)),
            ),
        )
    heads, source = config.decoder_attention_heads, ("batch_size", "encoder_sequence_length")
    size = config.d_model // heads

    def cache(prefix: str, part: str, *axes: str) -> tuple[TensorSpec, ...]:
        shape = (axes[0], heads, axes[1], size)
        return tuple(
            TensorSpec(f"{prefix}.{layer}.{part}.{kind}", real, shape)
            for layer in range(config.decoder_layers)
            for kind in ("key", "value")
        )

    mask = TensorSpec("attention_mask", "int64", source)
    if file == FUSED_SOURCE_FILE:
        ids = TensorSpec("input_ids", "int64", source)
        return Signature((ids, mask), cache("present", "encoder", *source))
    buffer = ("rows", "max_length")
    inputs = (
        TensorSpec("input_ids", "int64", ("rows", 1)),
        TensorSpec("past_length", "int32", (1,)),
        TensorSpec("beam_size", "int32", (1,)),
        TensorSpec("cache_indirection", "int32", ("batch_size", "beams", "max_length")),
        TensorSpec("encoder_attention_mask", "int64", source),
        *cache("past_key_values", "decoder", *buffer),
        *cache("past_key_values", "encoder", *source),
    )
    outputs = (
        TensorSpec("hidden_states", real, ("rows", config.d_model)),
        *cache("present", "decoder", *buffer),
    )
    return Signature(inputs, outputs)
