"""The two fused graphs: the source's keys and values, and one token with its best successors.

Knows onnxruntime's own attention operators (domain com.microsoft) and what they need. Activations
are `(R, D)` between the attention layers; a cache buffer is `(R, H, max_length, E)` and is written
in place; beams find their past by `cache_indirection` instead of being moved.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from m2m100_onnx.bundle import FUSED_SOURCE_FILE, ModelConfig
from m2m100_onnx_export.builder import GraphBuilder
from m2m100_onnx_export.layers import Layers

__all__ = ["FusedGraphs"]

_DOMAIN = "com.microsoft"


class FusedGraphs:
    """The fused two, in terms of a `GraphBuilder`.

    Shapes: B sentences, K beams, R = B * K rows, S source length, D width, H heads, E = D / H.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        self.g = graph
        self.config = config
        self.layers = Layers(graph, config)

    def build(self, file: str) -> None:
        """Adds the nodes of one graph."""
        if file == FUSED_SOURCE_FILE:
            self._source()
        else:
            self._step()

    def _source(self) -> None:
        g, config = self.g, self.config
        g.enter("encoder")
        x = self.layers.embed("input_ids", None)
        mask = g.op("Cast", "attention_mask", to=TensorProto.INT32)
        for index in range(config.encoder_layers):
            layer = f"encoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            y = g.layer_norm(x, f"{layer}.self_attn_layer_norm")
            q, k, v = self.layers.split(g.linear(y, f"{layer}.self_attn.qkv"), 3)
            y = self._attend(q, k, v, mask, config.encoder_attention_heads)
            x = g.op("Add", x, g.linear(y, f"{layer}.self_attn.out_proj"))
            x = self.layers.encoder_output(self.layers.feed_forward(x, layer))
        g.enter("encoder")
        x = g.layer_norm(x, "encoder.layer_norm")
        heads = config.decoder_attention_heads
        shape = g.ints(0, 0, heads, config.d_model // heads)
        for index in range(config.decoder_layers):
            g.enter(f"decoder/layers/{index}")
            both = g.linear(x, f"decoder.layers.{index}.encoder_attn.kv")
            for kind, part in zip(("key", "value"), self.layers.split(both, 2), strict=True):
                name = f"present.{index}.encoder.{kind}"
                g.op("Transpose", g.op("Reshape", part, shape), perm=[0, 2, 1, 3], name=name)

    def _step(self) -> None:
        g, config = self.g, self.config
        g.enter("decoder")
        past = g.op("Cast", "past_length", to=TensorProto.INT64)
        x = self._flat(self.layers.embed("input_ids", past))
        mask = g.op("Cast", "encoder_attention_mask", to=TensorProto.INT32)
        sentences = g.op("Shape", mask, start=0, end=1)
        by_sentence = g.op("Concat", sentences, g.ints(-1, config.d_model), axis=0)
        for index in range(config.decoder_layers):
            g.enter(f"decoder/layers/{index}")
            x = self._decoder_layer(x, index, mask, by_sentence)
        g.enter("decoder")
        x = g.layer_norm(g.op("Gather", x, "ranked_rows"), "decoder.layer_norm")
        self._rank(self.layers.logits(x))

    def _decoder_layer(self, x: str, index: int, mask: str, by_sentence: str) -> str:
        g, config = self.g, self.config
        layer, heads = f"decoder.layers.{index}", config.decoder_attention_heads
        y = g.layer_norm(x, f"{layer}.self_attn_layer_norm")
        y = g.op("Unsqueeze", g.linear(y, f"{layer}.self_attn.qkv"), g.ints(1))
        past, present = f"past_key_values.{index}", f"present.{index}"
        attended = g.ops(
            "DecoderMaskedMultiHeadAttention",
            *self.layers.split(y, 3),
            *("", ""),  # no mask, no bias on the scores
            *(f"{past}.decoder.{kind}" for kind in ("key", "value")),
            *("past_length", "beam_size", "cache_indirection"),
            outputs=[None, *(f"{present}.decoder.{kind}" for kind in ("key", "value"))],
            domain=_DOMAIN,
            num_heads=heads,
            past_present_share_buffer=1,
        )[0]
        y = g.linear(self._flat(attended), f"{layer}.self_attn.out_proj")
        x = g.op("Add", x, y)

        y = g.layer_norm(x, f"{layer}.encoder_attn_layer_norm")
        # A sentence's beams are further query positions of it, so they share its keys and values.
        q = g.op("Reshape", g.linear(y, f"{layer}.encoder_attn.q_proj"), by_sentence)
        k, v = (f"{past}.encoder.{kind}" for kind in ("key", "value"))
        y = g.linear(
            self._flat(self._attend(q, k, v, mask, heads)), f"{layer}.encoder_attn.out_proj"
        )
        return self.layers.feed_forward(g.op("Add", x, y), layer)

    def _attend(self, q: str, k: str, v: str, mask: str, heads: int) -> str:
        return self.g.op("MultiHeadAttention", q, k, v, "", mask, domain=_DOMAIN, num_heads=heads)

    def _flat(self, x: str) -> str:
        """`(..., D)` as `(R, D)`."""
        return self.g.op("Reshape", x, self.g.ints(-1, self.config.d_model))

    def _rank(self, logits: str) -> None:
        """The best `count` tokens of every ranked row, by log-probability."""
        g = self.g
        x = self._constrain(logits, "early")
        x = self._constrain(g.op("LogSoftmax", x, axis=-1), "late")
        g.ops("TopK", x, "count", outputs=["scores", "tokens"], axis=-1)

    def _constrain(self, scores: str, time: str) -> str:
        """The repetition penalty at the cells `seen`, then -inf at the cells `banned`."""
        g, seen, banned = self.g, f"{time}_seen", f"{time}_banned"
        old = g.op("GatherND", scores, seen)
        new = g.op(
            "Where",
            g.op("Less", old, g.number(0.0)),
            g.op("Mul", old, "repetition_penalty"),
            g.op("Div", old, "repetition_penalty"),
        )
        scores = g.op("ScatterND", scores, seen, new)
        count = g.op("Shape", banned, start=0, end=1)
        return g.op("ScatterND", scores, banned, g.op("Expand", g.number(-np.inf), count))
