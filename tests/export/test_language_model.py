"""XLM checkpoints of every shape become bundles; what is no such checkpoint is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import XLMConfig, XLMForSequenceClassification

import xlm
from checkpoints import PICKLE, SAFETENSORS, tree, write_sharded
from m2m100_onnx import BundleError, ExportError, InvalidInputError, LanguageModel
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import PRECISIONS
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx_export import export
from m2m100_onnx_export import language_model as recipe
from tokenization import rewrite

SHAPES: dict[str, dict[str, Any]] = {
    "causal": {},
    "masked": {"causal": False},
    "sinusoidal": {"sinusoidal_embeddings": True},
    "masked-sinusoidal": {"causal": False, "sinusoidal_embeddings": True},
    "relu": {"gelu_activation": False},
    "no-languages": {"use_lang_emb": False},
    "one-language": {"n_langs": 1, "lang2id": {"en": 0}, "id2lang": {"0": "en"}},
    "own-head": {"tie_word_embeddings": False},
    "bare": {"head": False},
    "bare-masked": {"head": False, "causal": False},
    "one-layer": {"n_layers": 1},
    "epsilon": {"layer_norm_eps": 1e-3},
}


def names_of_old_versions(folder: Path) -> None:
    """Names of the published configs, and a buffer that old versions saved."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    renamed = {"vocab_size": "n_words", "bos_token_id": "bos_index", "eos_token_id": "eos_index"}
    config = {renamed.get(key, key): value for key, value in config.items()}
    config["pad_index"] = config.pop("pad_token_id")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    state = load_file(folder / SAFETENSORS)
    state["transformer.position_ids"] = torch.arange(64)[None]
    state["pred_layer.proj.weight"] = state["transformer.embeddings.weight"].clone()
    (folder / SAFETENSORS).unlink()
    torch.save(state, folder / PICKLE)


def in_shards(folder: Path) -> None:
    state = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    write_sharded(folder, SAFETENSORS, state, save_file)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_equals_pytorch(tmp_path: Path, shape: str) -> None:
    """Verification compares the logits, the outputs, and each step with a cache."""
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint", **SHAPES[shape])
    report = export(checkpoint, tmp_path / "bundle").report
    assert report is not None
    assert all(difference < 1e-4 for difference in report.differences.values())
    causal = SHAPES[shape].get("causal", True) and SHAPES[shape].get("head", True)
    assert ("cache, fused" in report.differences) == causal
    bundle = LanguageModelBundle.open(tmp_path / "bundle")
    assert bundle.has_fused_graphs == causal
    bundle.verify()


@pytest.mark.parametrize("change", [names_of_old_versions, in_shards])
def test_files_of_other_versions(tmp_path: Path, change: Callable[[Path], None]) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    plain = export(checkpoint, tmp_path / "plain").bundle
    change(checkpoint)
    found = export(checkpoint, tmp_path / "bundle", verify_outputs=change is in_shards).bundle
    assert (found / WEIGHTS_FILE).read_bytes() == (plain / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_weights_file_in_every_precision(tmp_path: Path, precision: Any) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "bundle", precision=precision).bundle
    graphs = sorted(path.name for path in bundle.glob("*.onnx"))
    assert graphs == [
        *(f"fused_{name}.onnx" for name in ("prefill", "rank", "step")),
        "model.onnx",
        "model_with_past.onnx",
    ]
    for name in graphs:
        model = onnx.load(bundle / name, load_external_data=False)
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == {WEIGHTS_FILE}
        inputs = {value.name for value in model.graph.input}
        assert "token_type_ids" not in inputs
        if not name.startswith("fused_rank"):
            assert {"input_ids", "langs"} <= inputs


def test_the_flag_overrides_the_file_and_is_written(tmp_path: Path) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint", causal=False)
    for causal in (True, False):
        bundle = export(checkpoint, tmp_path / str(causal), causal=causal).bundle
        assert LanguageModel(bundle).causal is causal
        assert json.loads((bundle / "config.json").read_text("utf-8"))["causal"] is causal
    assert LanguageModel(export(checkpoint, tmp_path / "silent").bundle).causal is False


def test_a_bundle_is_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """By one of the other kind, too."""
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, verify_outputs=False)
    with pytest.raises(ExportError, match="exists"):
        export(checkpoint, bundle, verify_outputs=False)
    export(tiny_checkpoint, bundle, overwrite=True, verify_outputs=False)
    assert not (bundle / "model.onnx").exists()
    export(checkpoint, bundle, overwrite=True, verify_outputs=False)
    assert not (bundle / "encoder_model.onnx").exists()
    assert LanguageModel(bundle).causal


def test_verification_sees_a_wrong_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    before = tree(tmp_path)
    write = recipe.write_weights

    def write_wrongly(parameters: Any, source: Any, path: Path, precision: Any) -> Any:
        found = write(parameters, source, path, precision)
        place = found.tensors["layers.1.fc2.bias"].offset
        data = bytearray(path.read_bytes())
        data[place : place + 4] = b"\0\0\x40\x40"  # 3.0
        path.write_bytes(data)
        return found

    monkeypatch.setattr(recipe, "write_weights", write_wrongly)
    with pytest.raises(ExportError, match=r"model\.onnx: largest difference .*cache, fused"):
        export(checkpoint, tmp_path / "bundle")
    assert tree(tmp_path) == before


def of_another_class(folder: Path) -> None:
    sizes = {"vocab_size": 100, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
    XLMForSequenceClassification(XLMConfig(**sizes)).save_pretrained(folder)


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def config(**facts: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", **facts)


def more_entries(folder: Path) -> None:
    path = folder / "vocab.json"
    rewrite(path, **{f"more{n}": 100 + n for n in range(5)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config(asm=True), "expected a linear LM head, found asm, an adaptive softmax"),
        (config(is_encoder=False), "expected is_encoder true, found false"),
        (config(n_heads=5), "expected emb_dim to be a multiple of n_heads, found 32 and 5"),
        (config(causal="yes"), "expected causal as bool, found 'yes'"),
        (config(emb_dim=64), "expected shape"),
        (config(n_layers=3), "has no tensor 'transformer.attentions.2.q_lin.weight'"),
        (config(n_langs=4), r"expected shape \(4, 32\)"),
        (config(quantization_config={"quant_method": "gptq"}), "gptq"),
        (of_another_class, "found .* others, such as"),
        (without("merges.txt"), "merges.txt is missing; XLM's tokenizer needs"),
        (without("vocab.json"), "vocab.json is missing; XLM's tokenizer needs"),
        (more_entries, "expected at most 100 tokens, .* found 105"),
    ],
    ids=range(12),
)
def test_what_is_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    change(checkpoint)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=message):
        export(checkpoint, tmp_path / "bundle")
    assert tree(tmp_path) == before


def test_arguments_of_the_other_kind(tmp_path: Path, tiny_checkpoint: Path) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint")
    for name, value in (("languages", ["en"]), ("family", "nllb"), ("adapter", "folder")):
        arguments: Any = {name: value}
        with pytest.raises(InvalidInputError, match=f"{name}: expected none for a language model"):
            export(checkpoint, tmp_path / "bundle", **arguments)
    with pytest.raises(InvalidInputError, match="causal: expected none for a translation model"):
        export(tiny_checkpoint, tmp_path / "bundle", causal=True)
