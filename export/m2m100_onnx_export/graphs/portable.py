"""The portable graphs, layer by layer, in standard ai.onnx operators.

Knows the architecture: a pre-norm transformer with absolute positions, whose encoder, decoder and
LM head share one embedding or have their own. Refuses to know weights; parameters are references
into the weights file. Reference for the arithmetic: transformers' `modeling_m2m_100.py`.
"""

from __future__ import annotations

import numpy as np

from m2m100_onnx.bundle.config import ModelConfig
from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
)
from m2m100_onnx_export.graphs.builder import GraphBuilder
from m2m100_onnx_export.graphs.layers import Layers, embed

__all__ = ["PortableGraphs"]

# In half precision, transformers clamps the output of an encoder layer to this.
_FP16_LIMIT = 65504.0 - 1000.0


class PortableGraphs:
    """Adds the nodes of the portable graphs to a `GraphBuilder`.

    Shapes: B sentences, R decoder rows (R = B, or B times the beams), S source length, T new target
    tokens, P past ones, D width, H heads, E = D / H.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        self.g = graph
        self.config = config
        self.layers = Layers(graph, config)
        self.masked = float(np.finfo(graph.real).min)

    def build(self, file: str) -> None:
        """Adds the nodes of one graph."""
        if file == ENCODER_FILE:
            self._encoder()
        elif file == CROSS_ATTENTION_FILE:
            self._decoder_layers(with_past=False, weights=True)
        else:
            self._decoder(with_past=file == DECODER_WITH_PAST_FILE)

    def _encoder(self) -> None:
        g, config = self.g, self.config
        g.enter("encoder")
        x = embed(g, config, "encoder", "input_ids", None)
        mask = self._padding_mask("attention_mask")
        heads = config.encoder_attention_heads
        for index in range(config.encoder_layers):
            layer = f"encoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            y = g.layer_norm(x, f"{layer}.self_attn_layer_norm")
            q, k, v = self._queries_keys_values(y, f"{layer}.self_attn", heads)
            y = g.linear(self._attend(q, k, v, mask, y), f"{layer}.self_attn.out_proj")
            x = self._feed_forward(g.op("Add", x, y), layer)
            if g.precision == "fp16":
                x = g.op("Clip", x, g.number(-_FP16_LIMIT), g.number(_FP16_LIMIT))
        g.enter("encoder")
        normed = g.layer_norm(x, "encoder.layer_norm")
        g.op("Identity", normed, name="last_hidden_state")

    def _decoder(self, *, with_past: bool) -> None:
        g, config = self.g, self.config
        x = self._decoder_layers(with_past=with_past)
        g.enter("decoder")
        x = g.layer_norm(x, "decoder.layer_norm")
        logits = self.layers.logits(g.op("Reshape", x, g.ints(-1, config.d_model)))
        lengths = g.op("Shape", x, start=0, end=2)
        shape = g.op("Concat", lengths, g.ints(config.vocab_size), axis=0)
        g.op("Reshape", logits, shape, name="logits")

    def _decoder_layers(self, *, with_past: bool, weights: bool = False) -> str:
        """Adds the decoder but for its last layer norm; `(rows, T, D)`.

        Args:
            with_past: whether keys and values of earlier tokens are inputs.
            weights: whether the weights of cross-attention are outputs, in the place of keys and
                values.
        """
        g, config = self.g, self.config
        g.enter("decoder")
        past_length = None
        if with_past:
            past_length = g.op("Shape", "past_key_values.0.decoder.key", start=2, end=3)
        x = embed(g, config, "decoder", "input_ids", past_length)
        causal = self._causal_mask(past_length)
        padding = self._padding_mask("encoder_attention_mask")
        for index in range(config.decoder_layers):
            g.enter(f"decoder/layers/{index}")
            x = self._decoder_layer(x, index, causal, padding, with_past=with_past, weights=weights)
        return x

    def _decoder_layer(
        self, x: str, index: int, causal: str, padding: str, *, with_past: bool, weights: bool
    ) -> str:
        g, heads = self.g, self.config.decoder_attention_heads
        layer = f"decoder.layers.{index}"
        y = g.layer_norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = self._queries_keys_values(y, f"{layer}.self_attn", heads)
        present = f"present.{index}.decoder"
        if with_past:
            past = f"past_key_values.{index}.decoder"
            k = g.op("Concat", f"{past}.key", k, axis=2, name=f"{present}.key")
            v = g.op("Concat", f"{past}.value", v, axis=2, name=f"{present}.value")
        elif not weights:
            k = g.op("Identity", k, name=f"{present}.key")
            v = g.op("Identity", v, name=f"{present}.value")
        y = g.linear(self._attend(q, k, v, causal, y), f"{layer}.self_attn.out_proj")
        x = g.op("Add", x, y)

        y = g.layer_norm(x, f"{layer}.encoder_attn_layer_norm")
        if with_past:
            k, v = (f"past_key_values.{index}.encoder.{kind}" for kind in ("key", "value"))
        else:
            k, v = self._cross_keys_values(layer, index, present=not weights)
        q = self._cross_queries(g.linear(y, f"{layer}.encoder_attn.q_proj"), k)
        name = f"cross_attentions.{index}" if weights else None
        y = g.linear(self._attend(q, k, v, padding, y, name), f"{layer}.encoder_attn.out_proj")
        return self._feed_forward(g.op("Add", x, y), layer)

    def _feed_forward(self, x: str, layer: str) -> str:
        g = self.g
        y = self.layers.feed_forward(g.layer_norm(x, f"{layer}.final_layer_norm"), layer)
        return g.op("Add", x, y)

    def _padding_mask(self, mask: str) -> str:
        """Adds the `(B, 1, 1, S)` mask of attention: 0, or the type's minimum at padding."""
        g = self.g
        hidden = g.op("Equal", mask, g.integer(0))
        added = g.op("Where", hidden, g.number(self.masked), g.number(0.0))
        return g.op("Unsqueeze", added, g.ints(1, 2))

    def _causal_mask(self, past_length: str | None) -> str:
        """Adds the `(T, P + T)` mask of self-attention: 0, or the minimum at later tokens."""
        g = self.g
        new = g.op("Shape", "input_ids", start=1, end=2)
        total = g.op("Add", new, past_length) if past_length else new
        none = g.ints()
        last, one = g.op("Reshape", total, none), g.integer(1)
        keys = g.op("Range", g.integer(0), last, one)
        first = g.op("Reshape", past_length, none) if past_length else g.integer(0)
        queries = g.op("Unsqueeze", g.op("Range", first, last, one), g.ints(1))
        later = g.op("Greater", keys, queries)
        return g.op("Where", later, g.number(self.masked), g.number(0.0))

    def _queries_keys_values(self, x: str, name: str, heads: int) -> list[str]:
        """Adds scaled queries, keys and values of self-attention, each `(rows, H, length, E)`."""
        g, width = self.g, self.config.d_model
        parts = self.layers.split(g.linear(x, f"{name}.qkv"), 3)
        parts[0] = self._scale(parts[0], heads)
        shape = g.ints(0, 0, heads, width // heads)
        return [g.op("Transpose", g.op("Reshape", p, shape), perm=[0, 2, 1, 3]) for p in parts]

    def _cross_keys_values(self, layer: str, index: int, *, present: bool) -> tuple[str, str]:
        """Adds the source's keys and values, `(B, H, S, E)`, which every later step reuses."""
        g, width, heads = self.g, self.config.d_model, self.config.decoder_attention_heads
        both = g.linear("encoder_hidden_states", f"{layer}.encoder_attn.kv")
        parts = self.layers.split(both, 2)
        shape = g.ints(0, 0, heads, width // heads)
        key, value = (
            g.op(
                "Transpose",
                g.op("Reshape", part, shape),
                perm=[0, 2, 1, 3],
                name=f"present.{index}.encoder.{kind}" if present else None,
            )
            for part, kind in zip(parts, ("key", "value"), strict=True)
        )
        return key, value

    def _cross_queries(self, x: str, key: str) -> str:
        """Adds the scaled queries of cross-attention, `(B, H, R / B * T, E)`.

        The beams of a sentence become query positions of it, so they share one copy of its keys
        and values. With R = B the shape is the usual `(B, H, T, E)`.
        """
        g, width, heads = self.g, self.config.d_model, self.config.decoder_attention_heads
        sentences = g.op("Shape", key, start=0, end=1)
        shape = g.op("Concat", sentences, g.ints(-1, heads, width // heads), axis=0)
        return g.op("Transpose", g.op("Reshape", self._scale(x, heads), shape), perm=[0, 2, 1, 3])

    def _scale(self, queries: str, heads: int) -> str:
        return self.g.op("Mul", queries, self.g.number((self.config.d_model // heads) ** -0.5))

    def _attend(
        self, q: str, k: str, v: str, mask: str, like: str, weights_name: str | None = None
    ) -> str:
        """Adds softmax(q k^T + mask) v, with the heads joined to the shape of `like`."""
        g = self.g
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        weights = g.op("Softmax", g.op("Add", scores, mask), axis=-1, name=weights_name)
        mixed = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return g.op("Reshape", mixed, g.op("Shape", like))
