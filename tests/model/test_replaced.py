"""A bundle's folder that changes while it is open: a Translator stays one model, wherever it is."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import Bundle, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import FUSED_STEP_FILE
from m2m100_onnx.errors import BundleError
from m2m100_onnx.model.model import Model
from m2m100_onnx_export import export

TEXT = "Open the file and save a copy."
ASKED: dict[str, Any] = {
    "source_lang": "en",
    "target_lang": "de",
    "beam_size": 3,
    "min_length": 12,
    "max_length": 16,
}


@pytest.fixture(scope="module")
def other_bundle(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Other numbers in all the shapes of `packed_bundle`."""
    checkpoint = make_checkpoint(
        d_model=64, encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=64
    )
    target = tmp_path_factory.mktemp("bundles") / "other"
    export(checkpoint, target, precision="int8", verify_outputs=False)
    return target


def opened(bundle: Path, cache: Path) -> Translator:
    """A Translator that gives a core each to the halves of a batch of twelve."""
    return Translator(bundle, cache_dir=cache, intra_op_num_threads=2, kernels=False)


def spoken(translator: Translator) -> list[tuple[tuple[int, ...], float]]:
    """What it makes of a sentence alone, then of each of twelve."""
    batches = [translator.translate_batch([TEXT] * count, **ASKED) for count in (1, 12)]
    return [(found.tokens, found.score) for batch in batches for found in batch]


def test_a_link_that_is_switched(packed_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    link, cache = tmp_path / "current", tmp_path / "cache"
    expected = spoken(opened(packed_bundle, cache))
    assert expected != spoken(opened(other_bundle, cache))
    link.symlink_to(packed_bundle)
    whole = opened(link, cache)
    link.unlink()
    link.symlink_to(other_bundle)
    assert spoken(whole) == expected
    # What is in the old place is as it was, so nothing had to be done without.
    assert len(set(map(id, whole.model.sessions._sessions.values()))) == 6
    assert spoken(opened(link, cache)) != expected


@pytest.mark.parametrize("removed", [True, False])
def test_a_bundle_that_is_replaced_or_removed(
    packed_bundle: Path,
    other_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    removed: bool,
) -> None:
    bundle, cache = tmp_path / "bundle", tmp_path / "cache"
    shutil.copytree(packed_bundle, bundle)
    expected = spoken(opened(bundle, cache))
    whole = opened(bundle, cache)
    lazy = Translator(bundle, cache_dir=cache, lazy=True, kernels=False)
    shutil.rmtree(bundle)
    if not removed:
        shutil.copytree(other_bundle, bundle)
    with caplog.at_level(logging.WARNING):
        assert spoken(whole) == expected
    # The shared sessions took the place of those for a core each, once each and not in silence.
    assert len(set(map(id, whole.model.sessions._sessions.values()))) == 3
    assert ["no longer the bundle" in record.getMessage() for record in caplog.records] == [
        True
    ] * 3
    with pytest.raises(
        BundleError, match=rf"no longer the bundle .* {WEIGHTS_FILE}\b.*; open it again"
    ):
        lazy.translate_batch([TEXT], **ASKED)


def test_weights_that_change_while_a_graph_is_opened(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(Bundle.open(bundle), cache_dir=False)
    open_session = model.sessions.factory.open

    def slow(*arguments: Any, **options: Any) -> Any:
        os.utime(bundle / WEIGHTS_FILE, ns=(1, 1))
        return open_session(*arguments, **options)

    monkeypatch.setattr(model.sessions.factory, "open", slow)
    with pytest.raises(BundleError, match=rf"removed since: {WEIGHTS_FILE}; open"):
        model.sessions.get(FUSED_STEP_FILE)
    assert not model.sessions._sessions


def test_a_file_that_is_added_is_of_no_concern(bundle: Path) -> None:
    translator = Translator(bundle, cache_dir=False, lazy=True)
    (bundle / "decoder_model_merged.onnx").write_bytes(b"another program's")
    assert translator.translate_batch([TEXT], **ASKED)


def test_a_relative_folder_and_another_working_directory(
    packed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon that changes to the root when it has started."""
    expected = spoken(opened(packed_bundle, tmp_path / "cache"))
    monkeypatch.chdir(packed_bundle.parent)
    translator = opened(Path(packed_bundle.name), tmp_path / "cache")
    lazy = Translator(packed_bundle.name, cache_dir=tmp_path / "cache", lazy=True, kernels=False)
    monkeypatch.chdir("/")
    assert spoken(translator) == expected
    assert len(set(map(id, translator.model.sessions._sessions.values()))) == 6
    assert spoken(lazy) == expected
