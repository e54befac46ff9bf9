"""The fused graphs: the source's keys and values, a step of one token, and the next tokens' ranks.

Knows onnxruntime's own attention operators (domain com.microsoft). Refuses to know weights.
Activations between the attention layers are `(R, 1, D)`. A cache buffer is `(R, H, max_length, E)`,
and the graph writes it in place. `cache_indirection` says where each beam's past lies, so that no
row of the cache moves.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from m2m100_onnx.bundle.config import ModelConfig
from m2m100_onnx.bundle.graphs import FUSED_SOURCE_FILE, FUSED_STEP_FILE
from m2m100_onnx_export.graphs.builder import FUSED_DOMAIN, LAYER_NORM_EPSILON, GraphBuilder
from m2m100_onnx_export.graphs.layers import Layers, embed

__all__ = ["FusedGraphs"]


class FusedGraphs:
    """Adds the nodes of the fused graphs to a `GraphBuilder`.

    Shapes: B sentences, K beams, R = B * K rows, S source length, D width, H heads, E = D / H.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        self.g = graph
        self.config = config
        self.layers = Layers(graph, config)
        self._relu = config.activation_function == "relu"

    def build(self, file: str) -> None:
        """Adds the nodes of one graph."""
        parts = {FUSED_SOURCE_FILE: self._source, FUSED_STEP_FILE: self._step}
        parts.get(file, self.layers.rank)()

    def _source(self) -> None:
        g, config = self.g, self.config
        g.enter("encoder")
        x = embed(g, config, "encoder", "input_ids", None)
        mask = g.op("Cast", "attention_mask", to=TensorProto.INT32)
        y = g.layer_norm(x, "encoder.layers.0.self_attn_layer_norm")
        for index in range(config.encoder_layers):
            layer = f"encoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            q, k, v = self.layers.split(g.linear(y, f"{layer}.self_attn.qkv"), 3)
            y = self._attend(q, k, v, mask, config.encoder_attention_heads)
            x, y = self._add(x, y, f"{layer}.self_attn.out_proj", f"{layer}.final_layer_norm")
            following = f"encoder.layers.{index + 1}.self_attn_layer_norm"
            last = index + 1 == config.encoder_layers
            y = self.layers.hidden(y, layer)
            norm = "encoder.layer_norm" if last else following
            x, y = self._add(x, y, f"{layer}.fc2", norm, relu=self._relu)
        heads = config.decoder_attention_heads
        shape = g.ints(0, 0, heads, config.d_model // heads)
        for index in range(config.decoder_layers):
            g.enter(f"decoder/layers/{index}")
            both = g.linear(y, f"decoder.layers.{index}.encoder_attn.kv")
            for kind, part in zip(("key", "value"), self.layers.split(both, 2), strict=True):
                name = f"present.{index}.encoder.{kind}"
                g.op("Transpose", g.op("Reshape", part, shape), perm=[0, 2, 1, 3], name=name)

    def _step(self) -> None:
        g, config = self.g, self.config
        g.enter("decoder")
        past = g.op("Cast", "past_length", to=TensorProto.INT64)
        x = embed(g, config, "decoder", "input_ids", past)
        mask = g.op("Cast", "encoder_attention_mask", to=TensorProto.INT32)
        sentences = g.op("Shape", mask, start=0, end=1)
        by_sentence = g.op("Concat", sentences, g.ints(-1, config.d_model), axis=0)
        y = g.layer_norm(x, "decoder.layers.0.self_attn_layer_norm")
        for index in range(config.decoder_layers):
            layer = f"decoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            y = self._attend_to_past(y, index)
            x, y = self._add(
                x, y, f"{layer}.self_attn.out_proj", f"{layer}.encoder_attn_layer_norm"
            )
            # The beams of a sentence become query positions of it, so they share keys and values.
            q = g.op("Reshape", g.linear(y, f"{layer}.encoder_attn.q_proj"), by_sentence)
            k, v = (f"past_key_values.{index}.encoder.{kind}" for kind in ("key", "value"))
            y = self._attend(q, k, v, mask, config.decoder_attention_heads)
            y = g.op("Reshape", y, g.ints(-1, 1, config.d_model))
            x, y = self._add(x, y, f"{layer}.encoder_attn.out_proj", f"{layer}.final_layer_norm")
            following = f"decoder.layers.{index + 1}.self_attn_layer_norm"
            last = index + 1 == config.decoder_layers
            y = self.layers.hidden(y, layer)
            norm = "decoder.layer_norm" if last else following
            x, y = self._add(x, y, f"{layer}.fc2", norm, relu=self._relu)
        g.enter("decoder")
        g.op("Reshape", y, g.ints(-1, config.d_model), name="hidden_states")

    def _attend_to_past(self, y: str, index: int) -> str:
        """Adds self-attention, `(R, 1, D)`, which writes keys and values into the cache."""
        g, name = self.g, f"decoder.layers.{index}.self_attn.qkv"
        parts = self.layers.split(g.product(y, name), 3)
        return g.ops(
            "DecoderMaskedMultiHeadAttention",
            *parts,
            *("", ""),  # no mask and no bias of the attention scores
            *(f"past_key_values.{index}.decoder.{kind}" for kind in ("key", "value")),
            *("past_length", "beam_size", "cache_indirection"),
            g.parameter(f"{name}.bias"),
            outputs=[None, *(f"present.{index}.decoder.{kind}" for kind in ("key", "value"))],
            domain=FUSED_DOMAIN,
            num_heads=self.config.decoder_attention_heads,
            past_present_share_buffer=1,
        )[0]

    def _add(
        self, x: str, y: str, linear: str, norm: str, *, relu: bool = False
    ) -> tuple[str, str]:
        """Adds a linear layer of `y` to the residual stream.

        Returns:
            The sum and its normalization.
        """
        g = self.g
        if g.real == np.float32:
            # SkipLayerNormalization does it all, but takes three times as long on a CPU at 40 rows.
            x = g.op("Add", x, g.linear(y, linear, relu=relu))
            return x, g.layer_norm(x, norm)
        # On a GPU a step takes as long as the launches of its kernels.
        y, _, _, x = g.ops(
            "SkipLayerNormalization",
            g.product(y, linear, relu=relu),
            x,
            *(g.parameter(f"{norm}.{part}") for part in ("weight", "bias")),
            g.parameter(f"{linear}.bias"),
            outputs=[None, "", "", None],
            domain=FUSED_DOMAIN,
            epsilon=LAYER_NORM_EPSILON,
        )
        return x, y

    def _attend(self, q: str, k: str, v: str, mask: str, heads: int) -> str:
        return self.g.op(
            "MultiHeadAttention", q, k, v, "", mask, domain=FUSED_DOMAIN, num_heads=heads
        )
