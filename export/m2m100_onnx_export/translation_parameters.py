"""The parameters of M2M100, which transformers' tensors become.

Knows transformers' names of tensors and those of the graphs. Refuses to know files and nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.parameters import Parameter, embedding, linear, norm, stored
from m2m100_onnx_export.positions import count_positions, sinusoidal_positions

__all__ = ["translation_parameters"]

# The names of embeddings that one part alone reads.
_OWN = {"encoder": "encoder.embed_tokens", "decoder": "decoder.embed_tokens", "head": "lm_head"}


def translation_parameters(checkpoint: Checkpoint) -> list[Parameter]:
    """Returns every parameter of the model.

    A linear layer `name` becomes `name.weight`, `(in, out)` as `MatMul` takes it, and `name.bias`.
    Layers that read the same input become one: `self_attn.qkv`, `encoder_attn.kv`.

    Raises:
        BundleError: a tensor is missing, is not known or has another shape than config.json says.
    """
    config = checkpoint.config
    found = [*_embeddings(checkpoint), *_positions(checkpoint)]
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        ffn = config.encoder_ffn_dim if side == "encoder" else config.decoder_ffn_dim
        for index in range(layers):
            found += _layer(checkpoint, f"{side}.layers.{index}", ffn)
        found += norm(checkpoint, f"{side}.layer_norm", f"model.{side}.layer_norm", config.d_model)
    checkpoint.check_all_read()
    return found


def _embeddings(checkpoint: Checkpoint) -> Iterator[Parameter]:
    """Yields `shared.weight`, which most parts read, and the embedding of each other part."""
    config = checkpoint.config
    tables = checkpoint.embeddings()
    used = [*tables.values()]
    shared = max(used, key=used.count)
    names = {"shared": shared} | {
        _OWN[part]: table for part, table in tables.items() if table != shared
    }
    for name, table in names.items():
        size = (config.vocab_size, config.d_model)
        yield embedding(checkpoint, f"{name}.weight", table, size)


def _positions(checkpoint: Checkpoint) -> Iterator[Parameter]:
    """Yields `positions.weight`, and the decoder's table where it differs.

    A learned table has the rows of the sinusoidal one, which transformers has alone.
    """
    config = checkpoint.config
    shape = (count_positions(config), config.d_model)

    def table(name: str, source: str) -> Parameter:
        if source in checkpoint:
            return stored(checkpoint, name, source, shape)
        return Parameter(name, shape, lambda: iter([sinusoidal_positions(config)]))

    encoder, decoder = (f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder"))
    yield table("positions.weight", encoder)
    both = [name for name in (encoder, decoder) if name in checkpoint]
    if both and not (len(both) == 2 and checkpoint.equal(*both)):
        yield table("decoder.embed_positions.weight", decoder)


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
