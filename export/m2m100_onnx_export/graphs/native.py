"""The native graphs: the fused ones in this project's own operators (domain m2m100).

A linear layer takes its layer norm before and its residual after it into the node, and reads the
weights as they lie in the weights file. Signatures are those of the fused graphs. Refuses to know
how the operators compute; `runtime/kernels/` has them.
"""

from __future__ import annotations

from onnx import TensorProto

from m2m100_onnx.bundle.config import ModelConfig
from m2m100_onnx.bundle.graphs import (
    NATIVE_FP16_STEP_FILE,
    NATIVE_SOURCE_FILE,
    NATIVE_STEP_FILE,
    OPERATORS_VERSION,
)
from m2m100_onnx_export.graphs.builder import LAYER_NORM_EPSILON, GraphBuilder, StoredMatrix
from m2m100_onnx_export.graphs.layers import Layers, embed

__all__ = ["NATIVE_DOMAIN", "NativeGraphs"]

NATIVE_DOMAIN = "m2m100"


class NativeGraphs:
    """Adds the nodes of the native graphs to a `GraphBuilder`.

    Shapes: B sentences, K beams, R = B * K rows, S source length, D width, H heads, E = D / H.
    """

    def __init__(self, graph: GraphBuilder, config: ModelConfig) -> None:
        self.g = graph
        self.config = config
        self.layers = Layers(graph, config)

    def build(self, file: str) -> None:
        """Adds the nodes of one graph."""
        # Where a step graph keeps numbers of 16 bits, its operators see that in their inputs.
        steps = (NATIVE_STEP_FILE, NATIVE_FP16_STEP_FILE)
        parts = {NATIVE_SOURCE_FILE: self._source, **dict.fromkeys(steps, self._step)}
        parts.get(file, self._rank)()

    def _source(self) -> None:
        g, config = self.g, self.config
        g.enter("encoder")
        x = embed(g, config, "encoder", "input_ids", None)
        for index in range(config.encoder_layers):
            layer = f"encoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            qkv = self._linear(x, f"{layer}.self_attn.qkv", f"{layer}.self_attn_layer_norm")
            y = self._op(
                "SelfAttention", qkv, "attention_mask", num_heads=config.encoder_attention_heads
            )
            x = self._linear(y, f"{layer}.self_attn.out_proj", residual=x)
            x = self._feed_forward(x, layer)
        heads = config.decoder_attention_heads
        shape = g.ints(0, 0, heads, config.d_model // heads)
        for index in range(config.decoder_layers):
            g.enter(f"decoder/layers/{index}")
            both = self._linear(x, f"decoder.layers.{index}.encoder_attn.kv", "encoder.layer_norm")
            for kind, part in zip(("key", "value"), self.layers.split(both, 2), strict=True):
                name = f"present.{index}.encoder.{kind}"
                g.op("Transpose", g.op("Reshape", part, shape), perm=[0, 2, 1, 3], name=name)

    def _step(self) -> None:
        g, config = self.g, self.config
        heads = config.decoder_attention_heads
        g.enter("decoder")
        # `(1,)` for all rows, or `(R,)`: every row may have its own length.
        past = g.op("Reshape", "past_length", g.ints(-1, 1))
        x = embed(g, config, "decoder", "input_ids", g.op("Cast", past, to=TensorProto.INT64))
        for index in range(config.decoder_layers):
            layer = f"decoder.layers.{index}"
            g.enter(layer.replace(".", "/"))
            y = self._linear(x, f"{layer}.self_attn.qkv", f"{layer}.self_attn_layer_norm")
            y = self._attend_to_past(y, index)
            x = self._linear(y, f"{layer}.self_attn.out_proj", residual=x)
            y = self._linear(x, f"{layer}.encoder_attn.q_proj", f"{layer}.encoder_attn_layer_norm")
            source = (f"past_key_values.{index}.encoder.{kind}" for kind in ("key", "value"))
            y = self._op("CrossAttention", y, *source, "encoder_attention_mask", num_heads=heads)
            x = self._linear(y, f"{layer}.encoder_attn.out_proj", residual=x)
            x = self._feed_forward(x, layer)
        g.enter("decoder")
        norm = (g.parameter(f"decoder.layer_norm.{part}") for part in ("weight", "bias"))
        y = self._op("LayerNorm", x, *norm, epsilon=LAYER_NORM_EPSILON)
        g.op("Reshape", y, g.ints(-1, config.d_model), name="hidden_states")

    def _attend_to_past(self, qkv: str, index: int) -> str:
        """Adds self-attention, `(R, 1, D)`, which writes keys and values into the cache."""
        own = [f"{index}.decoder.{kind}" for kind in ("key", "value")]
        return self._ops(
            "BeamAttention",
            qkv,
            *(f"past_key_values.{name}" for name in own),
            *("past_length", "beam_size", "cache_indirection"),
            outputs=[None, *(f"present.{name}" for name in own)],
            num_heads=self.config.decoder_attention_heads,
        )[0]

    def _feed_forward(self, x: str, layer: str) -> str:
        """Adds a layer's feed-forward network with its layer norm and residual."""
        relu = self.config.activation_function == "relu"
        y = self._linear(x, f"{layer}.fc1", f"{layer}.final_layer_norm")
        if not relu:
            y = self.layers.activate(y)
        return self._linear(y, f"{layer}.fc2", relu=relu, residual=x)

    def _rank(self) -> None:
        """Adds the LM head and the choice of the best tokens, in one node."""
        g = self.g
        g.enter("decoder")
        name = g.first_of("lm_head", "shared")
        matrix = g.stored_matrix(f"{name}.weight")
        eight = matrix.bits == 8  # Eight bits lie `(V, D)`, as embeddings do, four bits `(D, V)`.
        bias = [g.parameter("lm_head.bias")] if g.has("lm_head.bias") else [""]
        self._ops(
            "Rank",
            *("hidden_states", matrix.tensor, g.parameter(f"{name}.scale"), *bias),
            *("count", "repetition_penalty", "seen", "banned", "renormalized"),
            *self._column_scale(name, matrix),
            outputs=["scores", "tokens", "seen_scores"],
            in_features=matrix.columns if eight else matrix.rows,
            out_features=matrix.rows if eight else matrix.columns,
            bits=matrix.bits,
            transposed=int(eight),
        )

    def _linear(
        self, x: str, name: str, norm: str | None = None, *, residual: str = "", relu: bool = False
    ) -> str:
        """Adds `norm(x) @ weight + bias + residual`, or the product of `relu(x)`."""
        g = self.g
        matrix = g.stored_matrix(f"{name}.weight")
        constants = (matrix.tensor, g.parameter(f"{name}.scale"), g.parameter(f"{name}.bias"))
        norms = [g.parameter(f"{norm}.{part}") if norm else "" for part in ("weight", "bias")]
        inputs = [x, *constants, residual, *norms, *self._column_scale(name, matrix)]
        return self._op(
            "Linear",
            *inputs,
            in_features=matrix.rows,
            out_features=matrix.columns,
            bits=matrix.bits,
            transposed=0,
            relu=int(relu),
            epsilon=LAYER_NORM_EPSILON,
        )

    def _column_scale(self, name: str, matrix: StoredMatrix) -> list[str]:
        """Returns the scales that those of four bits are multiples of."""
        return [self.g.parameter(f"{name}.column_scale")] if matrix.bits == 4 else []

    def _op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Adds a node of this project's operators with one output."""
        return self._ops(kind, *inputs, outputs=[None], **attributes)[0]

    def _ops(
        self, kind: str, *inputs: str, outputs: list[str | None], **attributes: object
    ) -> list[str]:
        """Adds a node of this project's operators."""
        facts = {"domain": NATIVE_DOMAIN, "version": OPERATORS_VERSION, **attributes}
        return self.g.ops(kind, *inputs, outputs=outputs, **facts)
