"""The parameters of M2M100, which transformers' tensors become.

Knows transformers' names of tensors and those of the graphs. Refuses to know files and nodes.
"""

from __future__ import annotations

from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.parameters import Parameter, embedding, linear, norm
from m2m100_onnx_export.positions import count_positions, sinusoidal_positions

__all__ = ["translation_parameters"]


def translation_parameters(checkpoint: Checkpoint) -> list[Parameter]:
    """Returns every parameter of the model.

    A linear layer `name` becomes `name.weight`, `(in, out)` as `MatMul` takes it, and `name.bias`.
    Layers that read the same input become one: `self_attn.qkv`, `encoder_attn.kv`.

    Raises:
        BundleError: a tensor is missing, is not known or has another shape than config.json says.
    """
    config = checkpoint.config
    size = (config.vocab_size, config.d_model)
    checkpoint.check_shared_embedding()
    tables = checkpoint.embeddings()
    found = [
        embedding(checkpoint, "shared.weight", tables["encoder"], size),
        Parameter(
            "positions.weight",
            (count_positions(config), config.d_model),
            lambda: iter([sinusoidal_positions(config)]),
        ),
    ]
    if tables["head"] != tables["encoder"]:
        found.append(embedding(checkpoint, "lm_head.weight", tables["head"], size))
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        ffn = config.encoder_ffn_dim if side == "encoder" else config.decoder_ffn_dim
        for index in range(layers):
            found += _layer(checkpoint, f"{side}.layers.{index}", ffn)
        found += norm(checkpoint, f"{side}.layer_norm", f"model.{side}.layer_norm", config.d_model)
    checkpoint.check_all_read()
    return found


def _layer(checkpoint: Checkpoint, layer: str, ffn: int) -> list[Parameter]:
    width = checkpoint.config.d_model
    # (part of the layer, its name in the graphs, the checkpoint's layers, input, output of each)
    layers = [
        ("self_attn.", "qkv", ("q_proj", "k_proj", "v_proj"), width, width),
        ("self_attn.", "out_proj", ("out_proj",), width, width),
    ]
    norms = ["self_attn_layer_norm", "final_layer_norm"]
    if layer.startswith("decoder"):
        layers += [
            ("encoder_attn.", "q_proj", ("q_proj",), width, width),
            ("encoder_attn.", "kv", ("k_proj", "v_proj"), width, width),
            ("encoder_attn.", "out_proj", ("out_proj",), width, width),
        ]
        norms.append("encoder_attn_layer_norm")
    layers += [("", "fc1", ("fc1",), width, ffn), ("", "fc2", ("fc2",), ffn, width)]
    found = []
    for part, name, sources, rows, columns in layers:
        named = [f"model.{layer}.{part}{source}" for source in sources]
        found += linear(checkpoint, f"{layer}.{part}{name}", named, rows, columns)
    for name in norms:
        found += norm(checkpoint, f"{layer}.{name}", f"model.{layer}.{name}", width)
    return found
