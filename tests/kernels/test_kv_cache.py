"""Keys and values of 16 bits: what they change, what they do not, and where they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden
from m2m100_onnx import BundleError, InvalidInputError, Translator
from m2m100_onnx.bundle.folder import MANIFEST_FILE
from m2m100_onnx.bundle.graphs import NATIVE_FP16_STEP_FILE
from m2m100_onnx.model.fused import FusedState
from translations import EN_DE, assert_independent, beside_exact, need_kernels, root_mean_square

need_kernels()

_TYPES = ("float32", "float16")


def opened(bundle: Path, **options: Any) -> Translator:
    given = {"kernels": True, "intra_op_num_threads": 1, "kv_cache_dtype": "float16", **options}
    return Translator(bundle, **given)


def test_distributions_are_as_near_to_transformers_as_with_32_bits(
    native_bundles: dict[str, Path], demo_checkpoint: Path
) -> None:
    """The rounding of weights and activations loses what is lost."""
    translators = {k: opened(native_bundles["int8"], kv_cache_dtype=k) for k in _TYPES}
    found = beside_exact(demo_checkpoint, translators, every=15, prompt_tokens=8)
    scores, errors = ({name: pair[n] for name, pair in found.items()} for n in (0, 1))
    assert root_mean_square(errors["float16"]) < 1.1 * root_mean_square(errors["float32"])
    apart = np.abs(scores["float32"] - scores["float16"]).max(axis=1)
    assert min(apart) > 0  # Both types ran.


def test_neighbours_and_threads_change_nothing(native_bundle: Path) -> None:
    assert_independent(opened(native_bundle))
    assert_independent(opened(native_bundle, intra_op_num_threads=2))


@pytest.mark.parametrize("beam_size", [1, 4])
def test_the_queue_gives_the_translations_of_serial_calls(
    native_bundles: dict[str, Path], beam_size: int
) -> None:
    texts = golden.Case("en-de", 1, {}, every=10).texts()
    translator = opened(native_bundles["int4"])
    asked = {**EN_DE, "beam_size": beam_size, "max_length": 40}
    expected = [translator.translate_batch([text], **asked)[0] for text in texts]
    futures = [translator.submit(text, **asked) for text in texts]
    assert [future.result() for future in futures] == expected


def test_keys_and_values_take_half_the_memory(native_bundles: dict[str, Path]) -> None:
    sizes = 4, 20, 30, 100
    charged, held = [], []
    for name in _TYPES:
        model = opened(native_bundles["int8"], kv_cache_dtype=name).model
        charged.append(model.cache_bytes(*sizes))
        ids = np.full((3, 7), 5)
        state = model.begin(ids, np.ones_like(ids), np.full((3, 2), 2))
        assert isinstance(state, FusedState)
        kept = state.held()
        held.append(kept.own.nbytes + kept.source.nbytes)
    assert charged[0] == 2 * charged[1]
    assert held[0] == 2 * held[1]


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["fp16", "int8", "", 16])
def test_other_types_are_refused(packed_bundle: Path, wrong: Any) -> None:
    message = rf"kv_cache_dtype: expected float32, or float16 with .* found {wrong!r}"
    with pytest.raises(InvalidInputError, match=message):
        opened(packed_bundle, kv_cache_dtype=wrong)


@pytest.mark.parametrize("options", [{"kernels": False}, {"kernels": None, "fused": False}])
def test_other_graphs_refuse_16_bits(packed_bundle: Path, options: dict[str, Any]) -> None:
    kind = "portable" if "fused" in options else "fused"
    with pytest.raises(InvalidInputError, match=f"kv_cache_dtype: .*'float16' with {kind} graphs"):
        opened(packed_bundle, **options)


def test_a_bundle_of_16_bits_has_no_other(demo_bundle_fp16: Path) -> None:
    given: dict[str, Any] = {"kernels": None, "lazy": True}
    assert not opened(demo_bundle_fp16, **given).model.native
    with pytest.raises(InvalidInputError, match="kv_cache_dtype: expected float16"):
        opened(demo_bundle_fp16, kv_cache_dtype="float32", **given)


def test_an_older_bundle(packed_bundle: Path, tmp_path: Path) -> None:
    """It runs as ever, and says what it lacks where that is wanted."""
    old = tmp_path / "old"
    old.mkdir()
    for file in packed_bundle.iterdir():
        if file.name not in (MANIFEST_FILE, NATIVE_FP16_STEP_FILE):
            (old / file.name).symlink_to(file)
    manifest = json.loads((packed_bundle / MANIFEST_FILE).read_text())
    del manifest["files"][NATIVE_FP16_STEP_FILE], manifest["graphs"][NATIVE_FP16_STEP_FILE]
    (old / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert opened(old, kv_cache_dtype=None).model.native
    with pytest.raises(BundleError, match=f"expected a bundle with {NATIVE_FP16_STEP_FILE}.*again"):
        opened(old)
