"""Shapes of the architecture beside the published ones, each verified against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration, M2M100Model
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding

from checkpoints import SAFETENSORS, as_pickle, copied
from m2m100_onnx import BundleError, Translator
from m2m100_onnx_export import export

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "swish")
TEXTS = ["Open the file and save a copy before you close the window.", "Close it.", "No."]
LANGUAGES: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(make_checkpoint: Callable[..., Path], tmp_path: Path, activation: str) -> None:
    """Both kinds of graphs equal PyTorch, and eight bits stay as near as with ReLU."""
    checkpoint = make_checkpoint(activation_function=activation, scale_embedding=False)
    for precision in ("fp32", "fp16", "int8"):
        done = export(checkpoint, tmp_path / precision, precision=precision)
        assert done.report is not None
        assert done.report.differences
    export(checkpoint, tmp_path / "int4", precision="int4", verify_outputs=False)
    for precision in ("fp32", "int8", "int4"):
        translator = Translator(tmp_path / precision, intra_op_num_threads=1)
        together = translator.translate_batch(TEXTS, **LANGUAGES)
        alone = [translator.translate_batch([text], **LANGUAGES)[0] for text in TEXTS]
        assert [(t.tokens, t.score) for t in together] == [(t.tokens, t.score) for t in alone]


@pytest.mark.parametrize(
    "shape",
    [
        {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 96, "decoder_ffn_dim": 32},
        {"encoder_attention_heads": 1, "decoder_attention_heads": 8, "scale_embedding": False},
        {"d_model": 48, "encoder_attention_heads": 6, "max_position_embeddings": 100},
    ],
    ids=["layers", "heads", "width"],
)
def test_other_sizes(
    make_checkpoint: Callable[..., Path], tmp_path: Path, shape: dict[str, Any]
) -> None:
    export(make_checkpoint(**shape), tmp_path / "bundle")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_bare_model(tiny_checkpoint: Path, tmp_path: Path, pickled: bool) -> None:
    """`M2M100Model` saves the same tensors without a prefix."""
    bare = copied(tiny_checkpoint, tmp_path / "bare")
    model = M2M100ForConditionalGeneration.from_pretrained(tiny_checkpoint)
    assert isinstance(model.model, M2M100Model)
    model.model.save_pretrained(bare)
    if pickled:
        as_pickle(bare, load_file(bare / SAFETENSORS))
        (bare / SAFETENSORS).unlink()
    export(bare, tmp_path / "bundle")
    export(tiny_checkpoint, tmp_path / "whole", verify_outputs=False)
    name = "model.onnx_data"
    assert (tmp_path / "bundle" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def with_tensors(checkpoint: Path, folder: Path, **tensors: torch.Tensor) -> Path:
    copied(checkpoint, folder)
    save_file({**load_file(folder / SAFETENSORS), **tensors}, folder / SAFETENSORS)
    return folder


def test_tables_and_biases_without_effect(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Old checkpoints have the table of positions, and some a bias of zeros."""
    table = M2M100SinusoidalPositionalEmbedding(64, 32, padding_idx=1).weights
    checkpoint = with_tensors(
        tiny_checkpoint,
        tmp_path / "checkpoint",
        **{
            "model.encoder.embed_positions.weights": table.clone(),
            "model.decoder.embed_positions.weights": table.clone(),
            "final_logits_bias": torch.zeros(1, 10609),
        },
    )
    export(checkpoint, tmp_path / "bundle")


def test_layers_that_the_config_leaves_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_layers": 1}))
    export(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(
    "name",
    [
        "model.encoder.layers.0.ffn.router.classifier.weight",
        "model.encoder.embed_positions.weights",
        "model.decoder.layers.0.self_attn.relative_attention_bias.weight",
        "final_logits_bias",
    ],
)
def test_tensors_of_another_architecture(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    checkpoint = with_tensors(
        tiny_checkpoint, tmp_path / "checkpoint", **{name: torch.ones(66, 32)}
    )
    with pytest.raises(BundleError, match=rf"found 1 others, such as {name}: .*architecture"):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("model_type", ["nllb-moe", "seamless_m4t", "seamless_m4t_v2", "mbart"])
def test_other_architectures(tiny_checkpoint: Path, tmp_path: Path, model_type: str) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
    with pytest.raises(BundleError, match=rf"expected model_type 'm2m_100', found '{model_type}'"):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("position_embedding_type", "rotary", "'absolute' or 'sinusoidal' or 'learned'"),
        ("position_embedding_type", "relative_key", "'absolute' or 'sinusoidal' or 'learned'"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "absent"),
        ("normalize_before", False, "True"),
        ("num_experts", 128, "0"),
    ],
    ids=["rotary", "relative", "rope", "post-norm", "experts"],
)
def test_schemes_that_no_graph_has(
    tiny_checkpoint: Path, tmp_path: Path, key: str, value: object, expected: str
) -> None:
    """None of these settings is read by transformers, which would compute something else."""
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BundleError, match=rf"expected {key} to be {expected}, found"):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_learned_positions_without_a_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), "position_embedding_type": "learned"}
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"expected a tensor 'model.encoder.embed_positions.weig"):
        export(checkpoint, tmp_path / "bundle")


def test_schemes_that_mean_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    path = checkpoint / "config.json"
    known = {"position_embedding_type": "absolute", "normalize_before": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    export(checkpoint, tmp_path / "bundle", verify_outputs=False)
