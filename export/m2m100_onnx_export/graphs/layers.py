"""The parts of the architecture that all graphs share: embedding, feed-forward network, LM head.

Portable and fused graphs differ in attention and in what the decoder returns; this file refuses to
know either. Reference for the arithmetic: transformers' `modeling_m2m_100.py`.
"""

from __future__ import annotations

from onnx import TensorProto

from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig
from m2m100_onnx.bundle.families import first_position
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.graphs.builder import GraphBuilder

__all__ = ["Layers", "check_activation"]

_ACTIVATION = "relu"


def check_activation(config: ModelConfig, path: str) -> None:
    """Raises `BundleError` if no graph has the activation function that config.json names.

    Args:
        config: the facts of config.json.
        path: its place, for the message.
    """
    if config.activation_function != _ACTIVATION:
        raise BundleError(
            f"{path}: expected activation_function {_ACTIVATION}, "
            f"found {config.activation_function!r}"
        )


class Layers:
    """Adds the shared parts to a graph.

    Raises:
        BundleError: config.json names an activation function that no family has.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        check_activation(config, CONFIG_FILE)
        self.g = graph
        self.config = config

    def embed(self, ids: str, past_length: str | None) -> str:
        """Adds token and position embeddings, `(rows, length, D)`.

        A token's position is `first_position` plus the number of tokens before it that are not
        padding. Padding has the position before that one.

        Args:
            ids: `(rows, length)` tokens.
            past_length: `(1,)` tokens that the cache holds, or None without a cache.
        """
        g, config = self.g, self.config
        tokens = g.embedding_rows(ids)
        if config.scale_embedding:
            tokens = g.op("Mul", tokens, g.number(config.d_model**0.5))
        pad = g.integer(config.pad_token_id)
        real = g.op("Cast", g.op("Not", g.op("Equal", ids, pad)), to=TensorProto.INT64)
        count = g.op("CumSum", real, g.integer(1))
        if past_length is not None:
            count = g.op("Add", count, past_length)
        before = g.integer(first_position(config.pad_token_id) - 1)
        positions = g.op("Add", g.op("Mul", count, real), before)
        return g.op("Add", tokens, g.op("Gather", g.parameter("positions.weight"), positions))

    def split(self, x: str, parts: int) -> list[str]:
        """Cuts the output of stacked linear layers, `(..., parts * D)`, into `parts` tensors."""
        widths = self.g.ints(*[self.config.d_model] * parts)
        return self.g.ops("Split", x, widths, outputs=[None] * parts, axis=-1)

    def feed_forward(self, x: str, layer: str) -> str:
        """Adds a layer's feed-forward network; input and output are `(..., D)`."""
        return self.g.linear(self.g.linear(x, f"{layer}.fc1"), f"{layer}.fc2", relu=True)

    def logits(self, x: str) -> str:
        """Adds the LM head: `(N, V)` logits for `(N, D)` outputs of the last layer."""
        return self.g.embedding_product(x)
