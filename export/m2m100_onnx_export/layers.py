"""The parts of the architecture that all graphs write alike: embedding, feed-forward, LM head.

What differs between portable and fused graphs is attention, and what the decoder returns.
Reference for the arithmetic: transformers' `modeling_m2m_100.py`.
"""

from __future__ import annotations

from onnx import TensorProto

from m2m100_onnx.bundle import CONFIG_FILE, ModelConfig
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.builder import GraphBuilder

__all__ = ["Layers"]

_ACTIVATION = "relu"


class Layers:
    """The architecture's common parts, in terms of a `GraphBuilder`.

    Raises:
        BundleError: the checkpoint uses an activation function that no member of the family has.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        if config.activation_function != _ACTIVATION:
            raise BundleError(
                f"{CONFIG_FILE}: expected activation_function {_ACTIVATION}, "
                f"found {config.activation_function!r}"
            )
        self.g = graph
        self.config = config

    def embed(self, ids: str, past_length: str | None) -> str:
        """Token plus position embeddings, `(rows, length, D)`.

        A token's position is the number of tokens before it that are not padding, plus
        pad_token_id + 1; padding stays at pad_token_id.
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
        positions = g.op("Add", g.op("Mul", count, real), pad)
        return g.op("Add", tokens, g.op("Gather", g.parameter("positions.weight"), positions))

    def split(self, x: str, parts: int) -> list[str]:
        """Cuts what a fused linear layer gave, `(..., parts * D)`, into its `parts`."""
        widths = self.g.ints(*[self.config.d_model] * parts)
        return self.g.ops("Split", x, widths, outputs=[None] * parts, axis=-1)

    def feed_forward(self, x: str, layer: str) -> str:
        """A layer's feed-forward network, `(..., D)`."""
        return self.g.linear(self.g.linear(x, f"{layer}.fc1"), f"{layer}.fc2", relu=True)

    def logits(self, x: str) -> str:
        """Scores of every token, `(N, V)`, for `(N, D)` outputs of the last layer."""
        return self.g.embedding_product(x)
