"""The graphs of XLM: a post-norm transformer with a language embedding at each position.

Portable graphs use standard ai.onnx operators, fused ones onnxruntime's own attention (domain
com.microsoft). Refuses to know weights; parameters are references into the weights file. Reference
for the arithmetic: transformers' `modeling_xlm.py`.

Shapes: B texts, S tokens of a text, P past tokens, T new tokens, R rows, D width, H heads,
E = D / H.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from m2m100_onnx.bundle.graphs import FUSED_STEP_FILE
from m2m100_onnx.bundle.language_config import LanguageModelConfig
from m2m100_onnx.bundle.language_graphs import (
    FUSED_PREFILL_FILE,
    MODEL_FILE,
    MODEL_WITH_PAST_FILE,
)
from m2m100_onnx_export.graphs.builder import FUSED_DOMAIN, GraphBuilder
from m2m100_onnx_export.graphs.layers import Layers

__all__ = ["CausalGraphs"]


class CausalGraphs:
    """Adds the nodes of a language model's graphs to a `GraphBuilder`.

    A masked language model has the first graph alone, in which each token sees all others.
    """

    def __init__(self, graph: GraphBuilder, config: LanguageModelConfig) -> None:
        self.g = graph
        self.config = config
        self.layers = Layers(graph, config)
        self.masked = float(np.finfo(graph.real).min)

    def build(self, file: str) -> None:
        """Adds the nodes of one graph."""
        parts = {
            MODEL_FILE: self._model,
            MODEL_WITH_PAST_FILE: self._with_past,
            FUSED_PREFILL_FILE: self._prefill,
            FUSED_STEP_FILE: self._step,
        }
        parts.get(file, self.layers.rank)()

    def _model(self) -> None:
        g, config = self.g, self.config
        g.enter("embeddings")
        real = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.ints(-1)), to=self._real)
        hidden = g.op("Equal", "attention_mask", g.integer(0))
        visible = g.op("Unsqueeze", g.op("Not", hidden), g.ints(1, 2))
        if config.causal:
            # As in transformers, only zeroed outputs tell padding apart: keys are not masked.
            visible = self._earlier(None)

        def attend(x: str, layer: str) -> str:
            q, k, v = self._queries_keys_values(x, layer)
            if config.can_generate:
                k, v = self._name(k, v, layer)
            return self._attend(q, k, v, visible, x)

        x = g.op("Mul", self._embed(None), real)
        for index in range(config.layers):
            x = g.op("Mul", self._layer(x, index, attend), real)
        g.enter("head")
        if config.has_head:
            self._logits(x)
        g.op("Identity", x, name="last_hidden_state")

    def _with_past(self) -> None:
        g = self.g
        g.enter("embeddings")
        past_length = g.op("Shape", "past_key_values.0.key", start=2, end=3)
        visible = self._earlier(past_length)

        def attend(x: str, layer: str) -> str:
            q, k, v = self._queries_keys_values(x, layer)
            number = layer.rpartition(".")[2]
            k, v = (
                g.op(
                    "Concat",
                    f"past_key_values.{number}.{kind}",
                    new,
                    axis=2,
                    name=f"present.{number}.{kind}",
                )
                for kind, new in (("key", k), ("value", v))
            )
            return self._attend(q, k, v, visible, x)

        x = self._embed(past_length)
        for index in range(self.config.layers):
            x = self._layer(x, index, attend)
        g.enter("head")
        self._logits(x)

    def _prefill(self) -> None:
        g, heads = self.g, self.config.heads

        def attend(x: str, layer: str) -> str:
            parts = self.layers.split(g.linear(x, f"{layer}.self_attn.qkv"), 3)
            key, value = map(self._by_head, parts[1:])
            self._name(key, value, layer)
            return g.op(
                "MultiHeadAttention",
                *parts,
                domain=FUSED_DOMAIN,
                num_heads=heads,
                unidirectional=1,
            )

        g.enter("embeddings")
        x = self._embed(None)
        last = self.config.layers - 1
        for index in range(last):
            x = self._layer(x, index, attend)
        # Of the last layer, keys and values are all that a later step reads.
        g.enter(f"layers/{last}")
        parts = self.layers.split(g.linear(x, f"layers.{last}.self_attn.qkv"), 3)
        key, value = map(self._by_head, parts[1:])
        self._name(key, value, f"layers.{last}")

    def _step(self) -> None:
        g, heads = self.g, self.config.heads

        def attend(x: str, layer: str) -> str:
            name, number = f"{layer}.self_attn.qkv", layer.rpartition(".")[2]
            return g.ops(
                "DecoderMaskedMultiHeadAttention",
                *self.layers.split(g.product(x, name), 3),
                *("", ""),  # no mask and no bias of the attention scores
                *(f"past_key_values.{number}.{kind}" for kind in ("key", "value")),
                *("past_length", "beam_size", "cache_indirection"),
                g.parameter(f"{name}.bias"),
                outputs=[None, *(f"present.{number}.{kind}" for kind in ("key", "value"))],
                domain=FUSED_DOMAIN,
                num_heads=heads,
                past_present_share_buffer=1,
            )[0]

        g.enter("embeddings")
        x = self._embed(g.op("Cast", "past_length", to=TensorProto.INT64))
        for index in range(self.config.layers):
            x = self._layer(x, index, attend)
        g.enter("head")
        g.op("Reshape", x, g.ints(-1, self.config.d_model), name="hidden_states")

    @property
    def _real(self) -> int:
        return int(TensorProto.FLOAT16) if self.g.precision == "fp16" else int(TensorProto.FLOAT)

    def _embed(self, past_length: str | None) -> str:
        """Adds token, position and language embeddings, and their normalization, `(B, S, D)`."""
        g = self.g
        x = g.embedding_rows("input_ids")
        first = past_length or g.ints(0)
        last = g.op("Shape", "input_ids", start=1, end=2)
        if past_length:
            last = g.op("Add", last, past_length)
        table = g.parameter("positions.weight")
        x = g.op("Add", x, g.op("Slice", table, first, last, g.ints(0)))
        if self.config.languages:
            x = g.op("Add", x, g.op("Gather", g.parameter("languages.weight"), "langs"))
        return g.layer_norm(x, "layer_norm_emb", self.config.layer_norm_eps)

    def _layer(self, x: str, index: int, attend: Callable[[str, str], str]) -> str:
        """Adds a layer, whose normalizations follow its sums; input and output are `(B, S, D)`."""
        g, layer, epsilon = self.g, f"layers.{index}", self.config.layer_norm_eps
        g.enter(f"layers/{index}")
        y = g.linear(attend(x, layer), f"{layer}.self_attn.out_proj")
        x = g.layer_norm(g.op("Add", x, y), f"{layer}.self_attn_layer_norm", epsilon)
        y = self.layers.feed_forward(x, layer)
        return g.layer_norm(g.op("Add", x, y), f"{layer}.final_layer_norm", epsilon)

    def _queries_keys_values(self, x: str, layer: str) -> list[str]:
        """Adds scaled queries, keys and values, each `(B, H, S, E)`."""
        g = self.g
        parts = self.layers.split(g.linear(x, f"{layer}.self_attn.qkv"), 3)
        scale = (self.config.d_model // self.config.heads) ** -0.5
        parts[0] = g.op("Mul", parts[0], g.number(scale))
        return [self._by_head(part) for part in parts]

    def _by_head(self, x: str) -> str:
        heads = self.config.heads
        shape = self.g.ints(0, 0, heads, self.config.d_model // heads)
        return self.g.op("Transpose", self.g.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def _name(self, key: str, value: str, layer: str) -> list[str]:
        """Makes a layer's keys and values outputs of the graph."""
        number = layer.rpartition(".")[2]
        named = (("key", key), ("value", value))
        return [self.g.op("Identity", x, name=f"present.{number}.{kind}") for kind, x in named]

    def _earlier(self, past_length: str | None) -> str:
        """Adds the `(T, P + T)` table of what is visible: a token itself and those before it."""
        g = self.g
        new = g.op("Shape", "input_ids", start=1, end=2)
        total = g.op("Add", new, past_length) if past_length else new
        last, one = g.op("Squeeze", total), g.integer(1)
        keys = g.op("Range", g.integer(0), last, one)
        first = g.op("Squeeze", past_length) if past_length else g.integer(0)
        queries = g.op("Unsqueeze", g.op("Range", first, last, one), g.ints(1))
        return g.op("LessOrEqual", keys, queries)

    def _attend(self, q: str, k: str, v: str, visible: str, like: str) -> str:
        """Adds attention to what is visible, with the heads joined to the shape of `like`."""
        g = self.g
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = g.op("Where", visible, scores, g.number(self.masked))
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
        mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return g.op("Reshape", mixed, g.op("Shape", like))

    def _logits(self, x: str) -> None:
        g, config = self.g, self.config
        logits = self.layers.logits(g.op("Reshape", x, g.ints(-1, config.d_model)))
        lengths = g.op("Shape", x, start=0, end=2)
        shape = g.op("Concat", lengths, g.ints(config.vocab_size), axis=0)
        g.op("Reshape", logits, shape, name="logits")
