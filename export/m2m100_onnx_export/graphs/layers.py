"""The parts of the architecture that all graphs share: embedding, feed-forward network, LM head.

Portable and fused graphs differ in attention and in what the decoder returns; this file refuses to
know either. Reference for the arithmetic: transformers' `modeling_m2m_100.py`.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from onnx import TensorProto

from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig
from m2m100_onnx.bundle.families import first_position
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.graphs.builder import GraphBuilder

__all__ = ["Layers", "Sizes", "check_activation", "embed"]

_ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "swish")
"""The activation functions that the graphs have, under transformers' names."""


class Sizes(Protocol):
    """What the shared parts depend on, of either architecture's config.json."""

    @property
    def d_model(self) -> int:
        """The width."""
        ...

    @property
    def activation_function(self) -> str:
        """The activation function of feed-forward networks, under transformers' name."""
        ...


def check_activation(config: Sizes, path: str) -> None:
    """Raises `BundleError` if no graph has the activation function that config.json names.

    Args:
        config: the facts of config.json.
        path: its place, for the message.
    """
    if config.activation_function not in _ACTIVATIONS:
        raise BundleError(
            f"{path}: expected an activation_function of {', '.join(_ACTIVATIONS)}, "
            f"found {config.activation_function!r}"
        )


class Layers:
    """Adds the shared parts to a graph.

    Raises:
        BundleError: config.json names an activation function that no family has.
    """

    def __init__(self, graph: GraphBuilder, config: Sizes) -> None:
        check_activation(config, CONFIG_FILE)
        self.g = graph
        self.config = config

    def split(self, x: str, parts: int) -> list[str]:
        """Cuts the output of stacked linear layers, `(..., parts * D)`, into `parts` tensors."""
        widths = self.g.ints(*[self.config.d_model] * parts)
        return self.g.ops("Split", x, widths, outputs=[None] * parts, axis=-1)

    def feed_forward(self, x: str, layer: str) -> str:
        """Adds a layer's feed-forward network; input and output are `(..., D)`."""
        relu = self.config.activation_function == "relu"
        return self.g.linear(self.hidden(x, layer), f"{layer}.fc2", relu=relu)

    def hidden(self, x: str, layer: str) -> str:
        """Adds what the second product of a feed-forward network takes, but for a ReLU."""
        x = self.g.linear(x, f"{layer}.fc1")
        return x if self.config.activation_function == "relu" else self.activate(x)

    def activate(self, x: str) -> str:
        """Adds an activation function other than ReLU, which products have built in.

        Source: `ACT2FN` of transformers' `activations.py`. "gelu" is exact, and "gelu_new" is the
        approximation by tanh of "Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415.
        """
        g, kind = self.g, self.config.activation_function
        if kind in ("silu", "swish"):
            return g.op("Mul", x, g.op("Sigmoid", x))
        if kind == "gelu":
            share = g.op("Erf", g.op("Mul", x, g.number(0.5**0.5)))
        else:
            cube = g.op("Mul", g.op("Mul", x, x), g.op("Mul", x, g.number(0.044715)))
            inner = g.op("Mul", g.op("Add", x, cube), g.number((2 / math.pi) ** 0.5))
            share = g.op("Tanh", inner)
        whole = g.op("Mul", x, g.op("Add", share, g.number(1.0)))
        return g.op("Mul", whole, g.number(0.5))

    def logits(self, x: str) -> str:
        """Adds the LM head: `(N, V)` logits for `(N, D)` outputs of the last layer."""
        return self.g.embedding_product(x)

    def rank(self) -> None:
        """Adds the rank graph: LM head, best `count` tokens of each row, scores of `seen` cells."""
        g = self.g
        g.enter("decoder")
        logits = self.logits("hidden_states")
        if g.real != np.float32:
            # Float16 has neither the range nor the digits for log-probabilities of a vocabulary.
            logits = g.op("Cast", logits, to=TensorProto.FLOAT)
        # ScatterND copies the logits, 20 MB at 40 rows. Without constraints there is no need.
        scores = g.choose(
            "renormalized",
            lambda: g.op("LogSoftmax", self._constrain(logits), axis=-1),
            lambda: g.op("LogSoftmax", logits, axis=-1),
        )
        g.op("GatherND", scores, "seen", name="seen_scores")
        g.ops("TopK", scores, "count", outputs=["scores", "tokens"], axis=-1)

    def _constrain(self, logits: str) -> str:
        """Adds the repetition penalty at the cells `seen`, and -inf at the cells `banned`."""
        g = self.g
        old = g.op("GatherND", logits, "seen")
        penalized = g.op(
            "Where",
            g.op("Less", old, g.float32(0.0)),
            g.op("Mul", old, "repetition_penalty"),
            g.op("Div", old, "repetition_penalty"),
        )
        count = g.op("Shape", "banned", start=0, end=1)
        forbidden = g.op("Expand", g.float32(-np.inf), count)
        # One ScatterND for both, since each copies all logits.
        cells = g.op("Concat", "seen", "banned", axis=0)
        return g.op("ScatterND", logits, cells, g.op("Concat", penalized, forbidden, axis=0))


def embed(
    g: GraphBuilder, config: ModelConfig, side: str, ids: str, past_length: str | None
) -> str:
    """Adds token and position embeddings, `(rows, length, D)`.

    A token's position is `first_position` plus the number of tokens before it that are not
    padding. Padding has the position before that one.

    Args:
        g: the graph.
        config: the model's sizes.
        side: `encoder` or `decoder`, which may have tables of their own.
        ids: `(rows, length)` tokens.
        past_length: `(1,)` tokens that the cache holds, or None without a cache.
    """
    tokens = g.embedding_rows(ids, g.first_of(f"{side}.embed_tokens", "shared"))
    if config.scale_embedding:
        tokens = g.op("Mul", tokens, g.number(config.d_model**0.5))
    pad = g.integer(config.pad_token_id)
    real = g.op("Cast", g.op("Not", g.op("Equal", ids, pad)), to=TensorProto.INT64)
    count = g.op("CumSum", real, g.integer(1))
    if past_length is not None:
        count = g.op("Add", count, past_length)
    before = g.integer(first_position(config.pad_token_id) - 1)
    positions = g.op("Add", g.op("Mul", count, real), before)
    table = g.parameter(f"{g.first_of(f'{side}.embed_positions', 'positions')}.weight")
    return g.op("Add", tokens, g.op("Gather", table, positions))
