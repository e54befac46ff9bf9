"""Which graphs run: the native ones wherever they can, and by name what is in their way."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from m2m100_onnx import (
    BundleError,
    DependencyError,
    InvalidInputError,
    LanguageModel,
    Translator,
)
from m2m100_onnx.bundle.graphs import NATIVE_FILES, NATIVE_STEP_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.model import operators
from shell import Shell, arguments
from translations import need_kernels

need_kernels()

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
TEXTS = ["Open the file and save a copy.", "Delete", "", "Do you want to close this window?"] * 3


@pytest.fixture
def again() -> Iterator[None]:
    """Looks for the package again, now and after the test."""
    operators.library.cache_clear()
    yield
    operators.library.cache_clear()


def test_where_native_graphs_are(
    demo_bundle: Path, demo_bundle_fp16: Path, native_bundle: Path
) -> None:
    assert all((native_bundle / name).is_file() for name in NATIVE_FILES)
    assert Translator(native_bundle, lazy=True).model.native
    for other in (demo_bundle, demo_bundle_fp16):
        assert not any((other / name).exists() for name in NATIVE_FILES)
        assert not Translator(other, lazy=True).model.native
        with pytest.raises(InvalidInputError, match=r"kernels: expected .*int8.*found .*fp(32|16)"):
            Translator(other, kernels=True, lazy=True)


def without_native_graphs(bundle: Path, target: Path) -> Path:
    """Returns a bundle as earlier exporters wrote it."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / MANIFEST_FILE).read_text())
    for name in NATIVE_FILES:
        (target / name).unlink()
        del manifest["files"][name], manifest["graphs"][name]
    (target / MANIFEST_FILE).write_text(json.dumps(manifest))
    return target


def test_a_bundle_without_native_graphs(native_bundle: Path, tmp_path: Path) -> None:
    old = without_native_graphs(native_bundle, tmp_path / "bundle")
    assert Translator(old, intra_op_num_threads=1).model.kind == "fused"
    expected = Translator(native_bundle, kernels=False, intra_op_num_threads=1)
    asked = {**EN_DE, "beam_size": 2}
    found = Translator(old, intra_op_num_threads=1).translate_batch(TEXTS, **asked)
    assert found == expected.translate_batch(TEXTS, **asked)
    message = r"kernels: expected a bundle .* with native_source\.onnx and .*found .*precision int"
    with pytest.raises(InvalidInputError, match=message):
        Translator(old, kernels=True)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["no", 1, 0])
def test_kernels_is_a_bool(packed_bundle: Path, kernels: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"kernels: expected True.*found {kernels!r}"):
        Translator(packed_bundle, kernels=kernels)


def test_fused_and_kernels(packed_bundle: Path) -> None:
    assert Translator(packed_bundle, lazy=True, fused=True).model.kind == "native"
    assert Translator(packed_bundle, lazy=True, kernels=False).model.kind == "fused"
    assert Translator(packed_bundle, lazy=True, fused=False).model.kind == "portable"
    with pytest.raises(InvalidInputError, match="kernels: expected fused to be True or None"):
        Translator(packed_bundle, fused=False, kernels=True)


def test_other_providers_are_refused(packed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(operators.ort, "get_available_providers", lambda: providers)
    with pytest.raises(InvalidInputError, match=r"kernels: .* no provider but the CPU's"):
        Translator(packed_bundle, kernels=True, device="cuda", lazy=True)


@pytest.mark.usefixtures("again")
def test_without_the_package(packed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "m2m100_onnx_kernels", None)
    assert Translator(packed_bundle, lazy=True).model.kind == "fused"
    with pytest.raises(DependencyError, match=r"pip install 'm2m100-onnx\[kernels\]'"):
        Translator(packed_bundle, kernels=True, lazy=True)


@pytest.mark.usefixtures("again")
def test_a_package_without_its_library(
    packed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise ImportError("expected libm2m100_onnx_kernels, found none")

    package = importlib.import_module("m2m100_onnx_kernels")
    monkeypatch.setattr(package, "library_path", missing)
    assert Translator(packed_bundle, lazy=True).model.kind == "fused"
    with pytest.raises(DependencyError, match="expected libm2m100_onnx_kernels, found none"):
        Translator(packed_bundle, kernels=True, lazy=True)


@pytest.mark.usefixtures("again")
def test_a_library_that_cannot_be_loaded(
    packed_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as one for another processor: all runs as without it, and not in silence."""
    damaged = tmp_path / "libm2m100_onnx_kernels.so"
    damaged.write_bytes(b"no library")
    package = importlib.import_module("m2m100_onnx_kernels")
    monkeypatch.setattr(package, "library_path", lambda: damaged)
    assert Translator(packed_bundle, lazy=True).model.kind == "fused"
    assert f"cannot load {damaged}" in caplog.text
    with pytest.raises(DependencyError, match=f"kernels: onnxruntime .* cannot load {damaged}"):
        Translator(packed_bundle, kernels=True, lazy=True)


@pytest.mark.usefixtures("again")
def test_a_package_that_is_too_old(packed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "OPERATORS_VERSION", 9)
    assert Translator(packed_bundle, lazy=True).model.kind == "fused"
    with pytest.raises(DependencyError, match=r"version 9 or newer, found version \d.*--upgrade"):
        Translator(packed_bundle, kernels=True, lazy=True)


def test_an_instruction_set_that_does_not_exist(packed_bundle: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from m2m100_onnx import Translator; Translator(sys.argv[1], kernels=True)",
            str(packed_bundle),
        ],
        env={**os.environ, "M2M100_KERNELS": "sse9", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "DependencyError: kernels: " in done.stderr
    assert "M2M100_KERNELS: expected one that this processor has: " in done.stderr
    assert "found sse9" in done.stderr


@pytest.mark.parametrize("op", ["Linear", "LayerNorm", "BeamAttention", "CrossAttention"])
def test_a_graph_of_newer_operators(op: str, packed_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(packed_bundle, tmp_path / "bundle"))
    path = bundle / NATIVE_STEP_FILE
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == op)
    next(a for a in node.attribute if a.name == "version").i = 7
    data = model.SerializeToString()
    assert len(data) == path.stat().st_size
    path.write_bytes(data)
    message = f"{NATIVE_STEP_FILE}: .*m2m100.{op}: expected version . or older, found version 7"
    with pytest.raises(BundleError, match=message):
        Translator(bundle, kernels=True)


def test_a_graph_of_unknown_operators(packed_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(packed_bundle, tmp_path / "bundle"))
    path = bundle / NATIVE_STEP_FILE
    path.write_bytes(path.read_bytes().replace(b"CrossAttention", b"GlossAttention"))
    with pytest.raises(BundleError, match=f"{NATIVE_STEP_FILE}.*GlossAttention"):
        Translator(bundle, kernels=True)


def test_language_models_have_none(causal_xlm: tuple[Path, Path]) -> None:
    assert not LanguageModel(causal_xlm[1], lazy=True).model.native


# --- The command ---------------------------------------------------------------------------------


def test_flags_of_the_command(
    native_bundles: dict[str, Path], demo_bundle: Path, shell: Shell
) -> None:
    asked: dict[str, Any] = {"source_lang": "en", "target_lang": "fr", "beam_size": 1}
    for flag, kernels in (("--kernels", True), ("--no-kernels", False)):
        translator = Translator(native_bundles["int8"], kernels=kernels)
        expected = translator.translate_batch(TEXTS[:2], **asked)
        text = "".join(f"{line}\n" for line in TEXTS[:2]).encode()
        status, out, _ = shell(*arguments(native_bundles["int8"], flag, "--json"), stdin=text)
        assert status == 0
        lines = [json.loads(line) for line in out.decode().splitlines()]
        assert [line["score"] for line in lines] == [t.score for t in expected]
    status, _, errors = shell(*arguments(demo_bundle, "--kernels"))
    assert status == 2
    assert "--kernels: expected a bundle of precision int8" in errors


def test_info_names_native_graphs(native_bundle: Path, shell: Shell) -> None:
    status, out, _ = shell("info", str(native_bundle), "--json")
    assert status == 0
    assert set(NATIVE_FILES) < set(json.loads(out)["graphs"])
