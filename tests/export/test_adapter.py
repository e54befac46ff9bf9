"""LoRA adapters: the merge equals PEFT's, tensor by tensor, and so do whole bundles."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

from checkpoints import SAFETENSORS, as_pickle, copied, tree, weights_of
from m2m100_onnx import BundleError, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.manifest import Manifest
from m2m100_onnx.cli.main import main
from m2m100_onnx_export import export
from m2m100_onnx_export.adapter import Adapter
from m2m100_onnx_export.checkpoint import Checkpoint

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEXTS = ["Open the file and save a copy before you close the window.", "Close it.", "No."]
ATTENTION = ["q_proj", "v_proj"]
# What PEFT writes when it was asked for something else than plain LoRA of some layers.
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "all-linear": {"target_modules": "all-linear", "r": 4, "lora_alpha": 3},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "target_modules": [*ATTENTION, "fc1"],
        "rank_pattern": {"fc1": 5, "encoder_attn.q_proj": 1},
        "alpha_pattern": {"model.decoder.layers.1.fc1": 7, "^model.encoder.*.v_proj": 11},
    },
    "every-bias": {"target_modules": ATTENTION, "bias": "all"},
    "biases-of-the-layers": {"target_modules": ATTENTION, "bias": "lora_only"},
    "bias-of-lora": {"target_modules": ATTENTION, "lora_bias": True},
    "whole-modules": {"target_modules": ATTENTION, "modules_to_save": ["fc2", "layer_norm"]},
    "head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    "tied-modules": {
        "target_modules": ATTENTION,
        "modules_to_save": ["lm_head"],
        "ensure_weight_tying": True,
    },
    "some-tokens": {"target_modules": ATTENTION, "trainable_token_indices": [7, 9, 10608]},
    "dora": {"target_modules": [*ATTENTION, "fc2"], "use_dora": True},
    "fan-in-fan-out": {"target_modules": ATTENTION, "fan_in_fan_out": True},
}


def load(checkpoint: Path) -> Any:
    return M2M100ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


def trained(checkpoint: Path, folder: Path, *, bare: bool = False, **config: Any) -> Path:
    """Saves an adapter of random numbers, none of which is what PEFT starts from."""
    torch.manual_seed(1)
    model = load(checkpoint)
    settings = {"r": 3, "lora_alpha": 5, **config}
    adapted = get_peft_model(model.model if bare else model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                # A tied embedding stays tied where PEFT keeps it so.
                torch.manual_seed(2 if "embed" in name or "shared" in name else 3)
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder)
    return folder


def merged(checkpoint: Path, adapter: Path) -> Any:
    model: Any = PeftModel.from_pretrained(load(checkpoint), adapter)
    return model.merge_and_unload().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_equals_that_of_peft(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS[kind])
    expected = merged(tiny_checkpoint, folder).state_dict()
    changed = {
        name
        for name, t in load(tiny_checkpoint).state_dict().items()
        if not torch.equal(t, expected[name])
    }
    assert changed
    checkpoint = Checkpoint(tiny_checkpoint, adapter=Adapter(folder))
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.rows(name).float(), tensor), name


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 shares the embeddings"
)
def test_low_rank_changes_of_untied_embeddings(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Each part has its own numbers, so a merge can express them."""
    checkpoint = make_checkpoint(tie_word_embeddings=False)
    modules = [*ATTENTION, "embed_tokens", "lm_head"]
    folder = trained(checkpoint, tmp_path / "adapter", target_modules=modules)
    expected = merged(checkpoint, folder).state_dict()
    opened = Checkpoint(checkpoint, adapter=Adapter(folder))
    assert len({*opened.embeddings().values()}) == 3
    for name in ("model.encoder.embed_tokens.weight", "lm_head.weight"):
        # In parts, as the export reads a table.
        found = torch.cat([opened.rows(name, 0, 5000), opened.rows(name, 5000)])
        assert torch.allclose(found, expected[name], rtol=1e-6, atol=1e-6)
    done = export(checkpoint, tmp_path / "bundle", adapter=folder)
    assert done.report is not None


@pytest.mark.parametrize("kind", ["all-linear", "head", "embeddings", "some-tokens", "dora"])
def test_a_bundle_equals_that_of_the_merged_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    """Verification compares graphs and tokens with PEFT's model, and says so."""
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS[kind])
    done = export(tiny_checkpoint, tmp_path / "bundle", adapter=folder)
    assert done.report is not None
    assert done.report.lines()[-1] == "PyTorch's model had the adapter merged by peft"
    assert Manifest.read(done.bundle).adapter == "adapter"
    card = (done.bundle / "README.md").read_text("utf-8")
    assert "with the adapter `adapter` merged in" in card

    model = merged(tiny_checkpoint, folder)
    tokenizer = M2M100Tokenizer.from_pretrained(tiny_checkpoint, src_lang="en")
    start = tokenizer.get_lang_id("de")
    translator = Translator(done.bundle, intra_op_num_threads=1)
    for beams in (1, 4):
        found = translator.translate_batch(
            TEXTS, source_lang="en", target_lang="de", beam_size=beams, max_length=20
        )
        for text, ours in zip(TEXTS, found, strict=True):
            theirs = model.generate(
                **tokenizer(text, return_tensors="pt"),
                forced_bos_token_id=start,
                num_beams=beams,
                max_length=20,
            )[0].tolist()
            assert list(ours.tokens) == theirs


def test_eight_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The merge comes before the rounding."""
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS["all-linear"])
    whole = copied(tiny_checkpoint, tmp_path / "whole")
    merged(tiny_checkpoint, folder).save_pretrained(whole)
    for precision in ("int8", "int4", "fp16"):
        one = weights_of(tiny_checkpoint, tmp_path / precision, precision=precision, adapter=folder)
        assert one == weights_of(whole, tmp_path / f"{precision}-whole", precision=precision)


def test_pickled_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS["patterns"])
    expected = weights_of(tiny_checkpoint, tmp_path / "one", adapter=folder)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    as_pickle(checkpoint, load_file(checkpoint / SAFETENSORS))
    (checkpoint / SAFETENSORS).unlink()
    assert weights_of(checkpoint, tmp_path / "two", adapter=folder) == expected


@pytest.mark.parametrize("bare", [False, True], ids=["whole-adapter", "bare-adapter"])
def test_bare_models(tiny_checkpoint: Path, tmp_path: Path, bare: bool) -> None:
    """Neither the checkpoint nor the adapter need the name of the model around them."""
    folder = trained(tiny_checkpoint, tmp_path / "adapter", bare=bare, **KINDS["all-linear"])
    expected = weights_of(tiny_checkpoint, tmp_path / "one", adapter=folder)
    checkpoint = copied(tiny_checkpoint, tmp_path / "bare")
    load(tiny_checkpoint).model.save_pretrained(checkpoint)
    done = export(checkpoint, tmp_path / "two", adapter=folder)
    assert (done.bundle / WEIGHTS_FILE).read_bytes() == expected
    assert done.report is not None


def test_half_precision_adapters(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS["all-linear"])
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    expected = merged(tiny_checkpoint, folder).state_dict()
    checkpoint = Checkpoint(tiny_checkpoint, adapter=Adapter(folder))
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.rows(name).float(), tensor), name


def test_without_peft(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export needs no PEFT, and the report says what the comparison then covers."""
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS["head"])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "peft" else find(name, *rest),
    )
    done = export(tiny_checkpoint, tmp_path / "bundle", adapter=folder)
    assert done.report is not None
    assert "the exporter itself" in done.report.lines()[-1]


def test_the_command(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "adapter", **KINDS["attention"])
    bundle = tmp_path / "bundle"
    command = ["export", str(tiny_checkpoint), str(bundle), "--adapter", str(folder)]
    assert main([*command, "--no-verify"]) == 0
    assert main(["info", str(bundle)]) == 0
    assert re.search(r"^  adapter +adapter$", capsys.readouterr().out, re.MULTILINE)
    expected = weights_of(tiny_checkpoint, tmp_path / "other", adapter=folder)
    assert (bundle / WEIGHTS_FILE).read_bytes() == expected


# --- Refusals ------------------------------------------------------------------------------------


def refused(checkpoint: Path, adapter: Path, tmp_path: Path, message: str) -> None:
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=message):
        export(checkpoint, tmp_path / "bundle", adapter=adapter, progress=lambda s: pytest.fail(s))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("module", ["shared", "embed_tokens", "lm_head"])
def test_low_rank_of_a_shared_embedding(tiny_checkpoint: Path, tmp_path: Path, module: str) -> None:
    """PEFT adds it to all parts that share the numbers, so its merge is not its own model."""
    folder = trained(tiny_checkpoint, tmp_path / "a", target_modules=[*ATTENTION, module])
    message = rf"change of '.*{module}\.weight', whose numbers encoder, decoder and LM head share"
    refused(tiny_checkpoint, folder, tmp_path, message)


def test_an_embedding_that_no_part_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = {"target_modules": ATTENTION, "modules_to_save": ["shared"]}
    folder = trained(tiny_checkpoint, tmp_path / "a", **config)
    refused(tiny_checkpoint, folder, tmp_path, "'model.shared.weight' alone, which neither")


def test_other_methods(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = get_peft_model(load(tiny_checkpoint), VeraConfig(r=2, target_modules=["fc1"]))
    model.save_pretrained(tmp_path / "a")
    refused(tiny_checkpoint, tmp_path / "a", tmp_path, "expected peft_type 'LORA', found 'VERA'")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"init_lora_weights": "pissa"}, "found init_lora_weights of 'pissa'"),
        ({"alora_invocation_tokens": [3, 4]}, r"found alora_invocation_tokens of \[3, 4\]"),
        ({"layer_replication": [[0, 1]]}, r"found layer_replication of \[\[0, 1\]\]"),
        ({"use_dora": True}, r"q_proj.weight: expected lora_magnitude_vector .* use_dora of True"),
        ({"r": 0}, "r: expected a positive number, found 0"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a positive number, found '8'"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern: expected positive numbers"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern: expected regular expressions, .*\['\('\]"),
        ({"r": 4}, r"lora_A\.weight': expected shape \(4, 32\) by .*, found \(3, 32\)"),
    ],
    ids=[
        *("base-weights", "alora", "layers", "dora", "rank", "alpha", "pattern", "regex", "shape"),
    ],
)
def test_settings(
    tiny_checkpoint: Path, tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "a", **KINDS["attention"])
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **setting}))
    refused(tiny_checkpoint, folder, tmp_path, message)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"d_model": 48}, r"lora_A\.weight': expected shape \(3, 32\) by .*, found \(3, 48\)"),
        ({"decoder_layers": 3}, r"change of 'model.decoder.layers.2.\S+', which the checkpoint la"),
    ],
    ids=["wider", "deeper"],
)
def test_an_adapter_of_another_model(
    make_checkpoint: Callable[..., Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    shape: dict[str, Any],
    message: str,
) -> None:
    other = make_checkpoint(**shape)
    folder = trained(other, tmp_path / "a", **KINDS["attention"])
    refused(tiny_checkpoint, folder, tmp_path, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.model.encoder.layers.0.fc1.lora_A.weight", r"expected both matrices"),
        ("base_model.model.model.encoder.layers.0.fc1.ia3_l", r"found '\S+\.ia3_l'"),
        ("model.encoder.layers.0.fc1.weight", r"named base_model\.model\.\S+, found 'mo"),
        ("base_model.model.model.encoder.router.weight", r"change of 'model.encoder.router.weig"),
    ],
    ids=["half-a-pair", "another-method", "no-prefix", "another-architecture"],
)
def test_tensors(tiny_checkpoint: Path, tmp_path: Path, name: str, message: str) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "a", **KINDS["attention"])
    save_file({**load_file(folder / WEIGHTS), name: torch.ones(3, 32)}, folder / WEIGHTS)
    refused(tiny_checkpoint, folder, tmp_path, message)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (CONFIG, r"a is no adapter: expected adapter_config\.json, found .*safetensors"),
        (WEIGHTS, r"expected the adapter's weights as .*, found README\.md, adapter_config"),
        ("", r"b is no adapter: expected adapter_config\.json, found no such folder"),
    ],
    ids=["config", "weights", "folder"],
)
def test_missing_files(tiny_checkpoint: Path, tmp_path: Path, missing: str, message: str) -> None:
    folder = trained(tiny_checkpoint, tmp_path / "a", **KINDS["attention"])
    if missing:
        (folder / missing).unlink()
    refused(tiny_checkpoint, folder if missing else tmp_path / "b", tmp_path, message)
