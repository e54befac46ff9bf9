"""Exports that fail leave the disk unchanged, and exports replace nothing but bundles."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import PICKLE, SAFETENSORS, as_pickle, copied, tree, weights_of, write_sharded
from interrupting import raise_in_handler
from m2m100_onnx import (
    BundleError,
    ExportError,
    InvalidInputError,
    M2M100Error,
    Translator,
    UnknownLanguageError,
)
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import GRAPH_FILES
from m2m100_onnx_export import export

ENCODER, DECODER, WITH_PAST = GRAPH_FILES


# --- Exports that fail ---------------------------------------------------------------------------


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_state(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / SAFETENSORS)
    change(state)
    save_file(state, folder / SAFETENSORS, {"format": "pt"})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def poke(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: edit_state(folder, lambda state: state[name].view(-1)[3:4].fill_(value))


def dropped(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_state(folder, lambda state: state.pop(name))


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def as_cut_pickle(folder: Path) -> None:
    as_pickle(folder, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()
    os.truncate(folder / PICKLE, 100_000)


def as_list_in_a_pickle(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save([1, 2, 3], folder / PICKLE)


def without_a_shard(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = load_file(folder / SAFETENSORS)
        (folder / SAFETENSORS).unlink()
        single, save = (SAFETENSORS, save_file) if suffix == SAFETENSORS else (PICKLE, torch.save)
        write_sharded(folder, single, state, save)
        next(folder.glob("*-00002-of-*")).unlink()

    return write


def embedding_too_small(folder: Path) -> None:
    """Removes rows, so that the embedding has fewer than pieces and languages together."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.shared.weight"] = state["model.shared.weight"][:10600].clone()

    edit_state(folder, change)
    edit_json(folder / "config.json", vocab_size=10600)


NORM = "model.encoder.layer_norm.weight"
FC1 = "model.decoder.layers.1.fc1.weight"
BREAKAGES: dict[str, tuple[Callable[[Path], Any], type[M2M100Error], str]] = {
    "no-config": (removed("config.json"), BundleError, r"no checkpoint.*config\.json"),
    "broken-config": (written("config.json", "{"), BundleError, r"config\.json"),
    "bart": (config(model_type="bart"), BundleError, "config.json.*'m2m_100'.*'bart'"),
    "no-width": (config(d_model=None), BundleError, "config.json.*d_model.*None"),
    "negative": (config(encoder_layers=-1), BundleError, "encoder_layers.*-1"),
    "heads": (config(decoder_attention_heads=5), BundleError, "32 and 5"),
    "activation": (
        config(activation_function="mish"),
        BundleError,
        r"config\.json.*gelu_new.*mish",
    ),
    "width": (config(d_model=64), BundleError, r"shared.weight'.*\(10609, 64\).*\(10609, 32\)"),
    "ffn": (config(decoder_ffn_dim=65), BundleError, r"fc1.weight'.*\(65, 32\).*\(64, 32\)"),
    "more-layers": (config(decoder_layers=3), BundleError, r"model\.decoder\.layers\.2"),
    "more-words": (config(vocab_size=10700), BundleError, r"\(10700, 32\).*\(10609, 32\)"),
    "no-weights": (removed(SAFETENSORS), BundleError, r"model\.safetensors or pytorch_model\.bin"),
    "no-norm": (dropped(NORM), BundleError, NORM),
    "no-embedding": (dropped("model.shared.weight"), BundleError, r"model\.shared\.weight"),
    "cut": (cut(SAFETENSORS, 100_000), BundleError, r"model\.safetensors"),
    "cut-header": (cut(SAFETENSORS, 50), BundleError, r"model\.safetensors"),
    "empty": (cut(SAFETENSORS, 0), BundleError, r"model\.safetensors"),
    "cut-pickle": (as_cut_pickle, BundleError, r"pytorch_model\.bin"),
    "list": (as_list_in_a_pickle, BundleError, r"pytorch_model\.bin.*state dict.*list"),
    "no-shard": (without_a_shard(SAFETENSORS), BundleError, r"00002.*is missing"),
    "no-pickled-shard": (without_a_shard(PICKLE), BundleError, r"00002.*is missing"),
    "overflow": (poke(FC1, 70000.0), BundleError, r"decoder\.layers\.1\.fc1.*fp16"),
    "nan": (poke(NORM, math.nan), BundleError, r"encoder\.layer_norm.*not finite"),
    "infinity": (poke("model.shared.weight", math.inf), BundleError, "shared.*not finite"),
    "no-vocab": (removed("vocab.json"), BundleError, r"vocab\.json is missing"),
    "no-pieces": (removed("sentencepiece.bpe.model"), BundleError, r"sentencepiece\.bpe\.model"),
    "broken-vocab": (written("vocab.json", "[]"), BundleError, r"vocab\.json"),
    "larger-vocab": (embedding_too_small, BundleError, r"embedding row.* 10600 rows"),
    "tokenizer-class": (
        written("tokenizer_config.json", '{"tokenizer_class": "M2M100TokenizerFast"}'),
        BundleError,
        "tokenizer_config.json: .*M2M100TokenizerFast",
    ),
    "added-token": (
        written("tokenizer_config.json", '{"mask_token": "<mask>"}'),
        BundleError,
        "tokenizer_config.json: .*<mask>",
    ),
    "beams": (written("generation_config.json", '{"num_beams": "5"}'), BundleError, "beam_size"),
    "broken-generation": (written("generation_config.json", "x"), BundleError, "generation_config"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_checkpoint_leaves_nothing_behind(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    change, error, message = BREAKAGES[name]
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    change(checkpoint)
    place = tmp_path / "place"
    copied(tiny_bundle, place / "old")
    (place / "other.txt").write_text("untouched")
    before = tree(tmp_path)
    for target, overwrite in (("old", True), ("deep/er/new", False)):
        with pytest.raises(error, match=message) as caught:
            export(checkpoint, place / target, precision="fp16", overwrite=overwrite)
        # What is named is there, and not a file of the folder that the export worked in.
        assert str(checkpoint) in str(caught.value)
        assert str(place) not in str(caught.value)
        assert tree(tmp_path) == before


def test_values_too_large_for_fp16_are_none_for_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    poke(FC1, 70000.0)(checkpoint)
    assert np.float32(70000).tobytes() in weights_of(checkpoint, tmp_path / "bundle")


def test_existing_folder_is_kept_without_overwrite(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "note.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("bundle", "empty", "file"):
        with pytest.raises(ExportError, match=rf"{name} exists.*overwrite"):
            export(tiny_checkpoint, tmp_path / name, verify_outputs=False)
    assert tree(tmp_path) == before


def test_overwrite_replaces_a_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "leftover.onnx").write_text("of an older version")
    os.truncate(tmp_path / "bundle" / WEIGHTS_FILE, 10)
    (tmp_path / "empty").mkdir()
    for name in ("bundle", "empty"):
        export(tiny_checkpoint, tmp_path / name, overwrite=True, verify_outputs=False)
        assert tree(tmp_path / name) == tree(tiny_bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "empty"]


def web_page(folder: Path) -> None:
    """Has a manifest.json, as browser extensions and web apps do."""
    (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "my extension"}')
    (folder / "index.html").write_text("mine")


def notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("fill", [web_page, notes])
def test_what_is_no_bundle_is_never_overwritten(
    tiny_checkpoint: Path, tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="folder is no bundle"):
        export(tiny_checkpoint, tmp_path / "folder", overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == before


def test_files_and_checkpoints_are_never_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for target in (tmp_path / "file", checkpoint):
        with pytest.raises(ExportError, match="is no bundle"):
            export(checkpoint, target, overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == before


def test_target_below_a_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="could not write the bundle"):
        export(tiny_checkpoint, tmp_path / "file" / "bundle", verify_outputs=False)
    assert tree(tmp_path) == before


class TimeLimitError(Exception):
    """As task queues raise it in a signal handler."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeLimitError, TimeoutError])
@pytest.mark.parametrize("stage", ["writing weights", "writing graphs", "verifying"])
def test_interrupt_leaves_nothing_behind(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    stage: str,
    error: type[BaseException],
) -> None:
    copied(tiny_bundle, tmp_path / "old")
    before = tree(tmp_path)

    def interrupt(message: str) -> None:
        if message.startswith(stage):
            assert tree(tmp_path) != before
            if issubclass(error, Exception):
                raise_in_handler(error("asked to stop"))
            raise error("asked to stop")

    for name in ("new", "old"):
        with pytest.raises(error, match="asked to stop"):
            export(tiny_checkpoint, tmp_path / name, overwrite=True, progress=interrupt)
        assert tree(tmp_path) == before


FULL_DISK = """
import json, resource, sys
from m2m100_onnx import ExportError
from m2m100_onnx_export import export

for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name in ("new", "old"):
        try:
            export(sys.argv[1], f"{sys.argv[2]}/{name}", overwrite=True, verify_outputs=False)
            print("exported", limit, name)
        except ExportError as error:
            print(type(error.__cause__).__name__, error)
"""


def test_full_disk(
    repository: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stops a write in the middle, as a full disk does."""
    copied(tiny_bundle, tmp_path / "old")
    before = tree(tmp_path)
    size = (tiny_bundle / WEIGHTS_FILE).stat().st_size
    # In vocab.json; in the middle of the weights; at their very last byte.
    limits = [1000, size // 2, size - 1]
    path = os.pathsep.join([str(repository / "runtime"), str(repository / "export")])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tiny_checkpoint, tmp_path, *map(str, limits)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(limits)
    for line in lines:
        assert line.startswith("OSError"), done.stdout
        assert "could not write the bundle" in line
        assert "File too large" in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int3"},
        {"precision": None},
        {"languages": []},
        {"languages": "en"},
    ],
)
def test_wrong_arguments(tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        export(tiny_checkpoint, tmp_path / "bundle", verify_outputs=False, **options)
    assert tree(tmp_path) == {}


def test_a_folder_has_no_revisions(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no revisions, found revision 'v2'"):
        export(tiny_checkpoint, tmp_path / "bundle", revision="v2", verify_outputs=False)
    assert tree(tmp_path) == {}


def test_a_language_is_named_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    export(tiny_checkpoint, target, languages=["en", "de", "en"], verify_outputs=False)
    assert Translator(target, lazy=True).languages == ("en", "de")


def test_unknown_language(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownLanguageError, match=r"'engl'.*'en'"):
        export(tiny_checkpoint, tmp_path / "b", languages=["de", "engl"], verify_outputs=False)
    assert tree(tmp_path) == {}
