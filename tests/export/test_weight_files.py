"""Which weights files count, and what is no weights file: stale, quantized, outside, a pointer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration

from checkpoints import PICKLE, SAFETENSORS, as_pickle, copied, tree, weights_of, write_sharded
from interrupting import raise_in_handler
from m2m100_onnx import BundleError
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx_export import export
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.weight_files import weight_files

State = dict[str, torch.Tensor]

# --- The order of preference ---------------------------------------------------------------------


def one_safetensors(folder: Path, state: State) -> None:
    save_file(state, folder / SAFETENSORS, {"format": "pt"})


def shards_safetensors(folder: Path, state: State) -> None:
    write_sharded(folder, SAFETENSORS, state, lambda s, p: save_file(s, p, {"format": "pt"}))


def one_pickle(folder: Path, state: State) -> None:
    as_pickle(folder, state)


def shards_pickle(folder: Path, state: State) -> None:
    write_sharded(folder, PICKLE, state, torch.save)


KINDS = (one_safetensors, shards_safetensors, one_pickle, shards_pickle)
PAIRS = [(a, b) for n, a in enumerate(KINDS) for b in KINDS[n + 1 :]]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_kinds_the_one_that_transformers_takes(
    tiny_checkpoint: Path,
    tmp_path: Path,
    first: Callable[[Path, State], None],
    second: Callable[[Path, State], None],
) -> None:
    """Either holds other numbers, so that the one that counts can be told."""
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    state = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    name = "model.encoder.layer_norm.weight"
    for number, write in ((1, first), (2, second)):
        write(folder, {**state, name: torch.full_like(state[name], number)})
    expected = M2M100ForConditionalGeneration.from_pretrained(folder).state_dict()[name]
    assert torch.equal(Checkpoint(folder).rows(name), expected)


@pytest.mark.parametrize("single", [SAFETENSORS, PICKLE])
@pytest.mark.parametrize("stale", ["{", "{}", '{"weight_map": {"x": "gone"}}'])
def test_an_index_that_save_pretrained_left_behind(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, single: str, stale: str
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    if single == PICKLE:
        as_pickle(folder, load_file(folder / SAFETENSORS))
        (folder / SAFETENSORS).unlink()
    (folder / f"{single}.index.json").write_text(stale)
    found = weights_of(folder, tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()


# --- Files outside the folder --------------------------------------------------------------------


@pytest.mark.parametrize("single", [SAFETENSORS, PICKLE])
@pytest.mark.parametrize(
    "place", ["../outside/{}", "{absolute}", "sub/../../outside/{}", ["{}"], 5, None, "", "\0", "x"]
)
def test_an_index_names_files_of_its_folder_alone(
    tiny_checkpoint: Path, tmp_path: Path, single: str, place: Any
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    outside = copied(tiny_checkpoint, tmp_path / "outside")
    as_pickle(outside, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()
    if isinstance(place, str):
        place = place.format(single, absolute=outside / single)
    index = {"weight_map": {"model.shared.weight": place}}
    (folder / f"{single}.index.json").write_text(json.dumps(index))
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=rf"{single}\.index\.json: expected .*folder, found "):
        export(folder, tmp_path / "bundle", verify_outputs=False)
    assert tree(tmp_path) == before


def test_shards_below_the_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / "parts").mkdir()
    shutil.move(folder / SAFETENSORS, folder / "parts" / SAFETENSORS)
    index = {"weight_map": {"model.shared.weight": f"parts/{SAFETENSORS}"}}
    (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index))
    assert weight_files(folder) == [folder / "parts" / SAFETENSORS]


# --- Quantized checkpoints -----------------------------------------------------------------------

FC1 = "model.decoder.layers.1.fc1"


def bitsandbytes_8bit(state: State) -> None:
    weight = state[f"{FC1}.weight"]
    scale = weight.abs().amax(1)
    state[f"{FC1}.weight"] = (weight / scale[:, None] * 127).round().to(torch.int8)
    state[f"{FC1}.SCB"] = scale
    state[f"{FC1}.weight_format"] = torch.tensor(0, dtype=torch.uint8)


def without_its_scale(state: State) -> None:
    state[f"{FC1}.weight"] = state[f"{FC1}.weight"].to(torch.int8)


def bitsandbytes_4bit(state: State) -> None:
    state[f"{FC1}.weight"] = torch.zeros(state[f"{FC1}.weight"].numel() // 2, 1, dtype=torch.uint8)
    state[f"{FC1}.weight.absmax"] = torch.ones(8)


def fp8(state: State) -> None:
    state[f"{FC1}.weight"] = state[f"{FC1}.weight"].to(torch.float8_e4m3fn)


def gptq(state: State) -> None:
    del state[f"{FC1}.weight"]
    state[f"{FC1}.qweight"] = torch.zeros(4, 64, dtype=torch.int32)


def scale_beside_floats(state: State) -> None:
    state[f"{FC1}.weight_scale"] = torch.ones(64)


FORMS = (bitsandbytes_8bit, without_its_scale, bitsandbytes_4bit, fp8, gptq, scale_beside_floats)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("quantize", FORMS)
def test_quantized_tensors_are_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, quantize: Callable[[State], None], pickled: bool
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    state = load_file(folder / SAFETENSORS)
    quantize(state)
    (folder / SAFETENSORS).unlink()
    (one_pickle if pickled else one_safetensors)(folder, state)
    before = tree(tmp_path)
    file = folder / (PICKLE if pickled else SAFETENSORS)
    with pytest.raises(BundleError, match=rf"^{file}: .*not quantized, found tensor '{FC1}\."):
        export(folder, tmp_path / "b", verify_outputs=False, progress=lambda s: pytest.fail(s))
    assert tree(tmp_path) == before


def test_torch_dynamic_quantization(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    state = {f"model.{name}": value for name, value in small.state_dict().items()}
    (folder / SAFETENSORS).unlink()
    torch.save(state, folder / PICKLE)
    with pytest.raises(BundleError, match=rf"^{folder / PICKLE}: .*not quantized, found tensor"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsand"),
        ("quantization_config", {"load_in_4bit": True}, "load_in_4bit"),
        ("quantization_config", "awq", "awq"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_a_config_says_that_weights_are_quantized(
    tiny_checkpoint: Path, tmp_path: Path, key: str, value: Any, found: str
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(BundleError, match=rf"config\.json: .*not quantized, found {key} .*{found}"):
        export(folder, tmp_path / "b", verify_outputs=False, progress=lambda s: pytest.fail(s))


def test_no_quantization_is_no_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    # An integer that is no weight, as batch counters are.
    state = {**load_file(folder / SAFETENSORS), "model.steps": torch.tensor([3])}
    one_safetensors(folder, state)
    assert Checkpoint(folder).shape("model.steps") == (1,)


# --- Pointers and damage -------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize("name", [SAFETENSORS, PICKLE, "config.json", "vocab.json"])
def test_a_pointer_in_place_of_a_file(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    if name == PICKLE:
        (folder / SAFETENSORS).unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(BundleError) as caught:
        export(folder, tmp_path / "bundle")
    assert str(caught.value) == (
        f"{folder / name}: expected the file itself, found a Git LFS pointer to it; "
        "run `git lfs pull`"
    )


def test_no_advice_to_load_unsafely(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What torch says to do about a file that it refuses is to run its code."""
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / SAFETENSORS).unlink()
    for content in (b"no pickle at all", b"PK\x03\x04 cut"):
        (folder / PICKLE).write_bytes(content)
        with pytest.raises(BundleError) as caught:
            Checkpoint(folder)
        message = str(caught.value)
        assert message.startswith(f"{folder / PICKLE}: damaged, or unsafe to open: ")
        assert "weights_only" not in message
        assert "trust" not in message


def test_an_exception_of_a_signal_handler_passes_through(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    as_pickle(folder, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()

    def interrupted(*_: Any, **__: Any) -> None:
        raise_in_handler(TimeoutError("of a signal handler"))

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(TimeoutError, match="of a signal handler"):
        Checkpoint(folder)
