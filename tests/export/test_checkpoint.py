"""Every format of a checkpoint gives the same weights, and unsafe files raise an error."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, M2M100ForConditionalGeneration

from checkpoints import PICKLE, SAFETENSORS, as_pickle, copied, tree, weights_of, write_sharded
from m2m100_onnx import BundleError, Manifest, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.manifest import FileRecord
from m2m100_onnx_export import export

# --- Checkpoint formats --------------------------------------------------------------------------


def as_sharded_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    (folder / SAFETENSORS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert len(state) > 2


def as_pickle_with_aliases(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Has each name of the shared embedding, as transformers saved pickles."""
    aliases = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    shared = {f"{name}.weight": state["model.shared.weight"] for name in aliases}
    torch.save({**state, **shared}, folder / PICKLE)


def as_pickle_of_old(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / PICKLE, _use_new_zipfile_serialization=False)


def as_sharded_pickle(folder: Path, state: dict[str, torch.Tensor]) -> None:
    write_sharded(folder, PICKLE, state, torch.save)


def as_other_name(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Has one of the aliases only, as some converters write it."""
    shared = state.pop("model.shared.weight")
    save_file({**state, "lm_head.weight": shared}, folder / SAFETENSORS, {"format": "pt"})


FORMATS = (
    as_sharded_safetensors,
    as_pickle,
    as_pickle_with_aliases,
    as_pickle_of_old,
    as_sharded_pickle,
    as_other_name,
)


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_weights(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    write: Callable[[Path, dict[str, torch.Tensor]], None],
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    if write is not as_sharded_safetensors:
        (checkpoint / SAFETENSORS).unlink()
    write(checkpoint, state)
    found = weights_of(checkpoint, tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pickled", [False, True])
def test_half_precision_sources(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, pickled: bool
) -> None:
    found = []
    for name, widened in (("half", False), ("wide", True)):
        checkpoint = copied(tiny_checkpoint, tmp_path / name)
        state = {k: v.to(dtype) for k, v in load_file(checkpoint / SAFETENSORS).items()}
        if widened:
            state = {k: v.float() for k, v in state.items()}
        (checkpoint / SAFETENSORS).unlink()
        if pickled and not widened:
            as_pickle(checkpoint, state)
        else:
            save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
        found.append(weights_of(checkpoint, tmp_path / f"{name}-bundle"))
    assert found[0] == found[1]


def test_safetensors_are_preferred(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / PICKLE).write_bytes(b"never read")
    found = weights_of(checkpoint, tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()


class _Trap:
    """Makes a folder when its pickle is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tiny_checkpoint: Path, tmp_path: Path, zipped: bool) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / SAFETENSORS).unlink()
    marker = tmp_path / "the code ran"
    state = {"model.shared.weight": torch.zeros(2), "trap": _Trap(marker)}
    torch.save(state, checkpoint / PICKLE, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BundleError, match=PICKLE):
        export(checkpoint, tmp_path / "bundle")
    assert not marker.exists()
    assert not (tmp_path / "bundle").exists()


def test_the_trap_works(tmp_path: Path) -> None:
    """The test above proves something only if the trap works."""
    torch.save(_Trap(tmp_path / "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_exports_are_the_same_byte_for_byte(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "again", verify_outputs=False)
    assert tree(tmp_path / "again") == tree(tiny_bundle)
    assert len(tree(tiny_bundle)) == 18


def test_what_export_returns(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = export(
        str(tiny_checkpoint), tmp_path / "a" / "b", verify_outputs=False, progress=said.append
    )
    assert done.bundle == tmp_path / "a" / "b"
    assert done.weight_bytes == (done.bundle / WEIGHTS_FILE).stat().st_size
    assert done.seconds > 0
    assert done.report is None
    assert said == ["writing weights", "writing graphs"]


def test_manifest_says_what_was_exported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "b", languages=["en", "de"], verify_outputs=False)
    manifest = Manifest.read(tmp_path / "b")
    assert (manifest.source, manifest.revision) == ("tiny", None)
    assert (manifest.precision, manifest.opset, manifest.languages) == ("fp32", 18, ("en", "de"))
    # The owner may edit the model card.
    found = {p.name for p in (tmp_path / "b").iterdir()} - {"manifest.json", "README.md"}
    assert manifest.files.keys() == found
    for name, record in manifest.files.items():
        data = (tmp_path / "b" / name).read_bytes()
        assert record == FileRecord(len(data), hashlib.sha256(data).hexdigest())


def test_generation_defaults_of_old_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Checkpoints older than generation_config.json have them in config.json."""
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_beams": 3, "min_length": 4}))
    export(checkpoint, tmp_path / "bundle", verify_outputs=False)
    generation = json.loads((tmp_path / "bundle" / "generation_config.json").read_text())
    ids = {f"{name}_token_id": n for n, name in enumerate(("bos", "pad", "eos"))}
    assert generation == {
        **ids,
        "decoder_start_token_id": 2,
        "num_beams": 3,
        "max_length": 200,
        "min_length": 4,
        "early_stopping": True,
    }
    defaults = Translator(tmp_path / "bundle").defaults
    # The model has 64 positions.
    assert (defaults.beam_size, defaults.max_length, defaults.early_stopping) == (3, 64, True)
    read = GenerationConfig.from_pretrained(tmp_path / "bundle")
    assert (read.num_beams, read.max_length, read.early_stopping) == (3, 200, True)


def test_a_generation_config_is_copied_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An option that the file does not name has transformers' default, not M2M100's."""
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").write_bytes(b'{"forced_bos_token_id":   5}')
    export(checkpoint, tmp_path / "bundle", verify_outputs=False)
    found = (tmp_path / "bundle" / "generation_config.json").read_bytes()
    assert found == b'{"forced_bos_token_id":   5}'
    assert Translator(tmp_path / "bundle", lazy=True).defaults.beam_size == 1
