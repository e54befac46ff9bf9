"""What a session is opened with: device, threads, providers, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m100_onnx import Bundle, DependencyError, InvalidInputError, Translator
from m2m100_onnx.bundle.graphs import FUSED_FILES, GRAPH_FILES
from m2m100_onnx.model import support
from m2m100_onnx.model.model import Model

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    "device", ["gpu", "", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "tensorrt", None, 0]
)
def test_unknown_device(tiny_bundle: Path, device: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Translator(tiny_bundle, device=device)
    assert str(caught.value) == (f"device: expected cpu, cuda, cuda:N or auto, found {device!r}")


@pytest.mark.parametrize("value", [0, -1, "2", 1.5, True, 1025, 10**20])
def test_threads_out_of_range(tiny_bundle: Path, value: Any) -> None:
    with pytest.raises(
        InvalidInputError,
        match=rf"intra_op_num_threads: .*from 1 to 1,024, or None, found {value!r}",
    ):
        Translator(tiny_bundle, intra_op_num_threads=value)


def test_numpys_number_of_threads(tiny_bundle: Path) -> None:
    model = Model(Bundle.open(tiny_bundle), intra_op_num_threads=np.int64(2))
    assert (model.threads, type(model.threads)) == (2, int)


def test_threads_reach_onnxruntime(tiny_bundle: Path) -> None:
    model = Model(Bundle.open(tiny_bundle), intra_op_num_threads=3)
    for name in GRAPH_FILES:
        options = model.sessions.get(name).get_session_options()
        assert options.intra_op_num_threads == 3


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_cuda(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(support.ort, "get_available_providers", lambda: [CPU])
    with pytest.raises(DependencyError, match=rf"no {CUDA}.*pip install 'm2m100-onnx\[gpu\]'"):
        Translator(tiny_bundle, device=device)


def test_auto_without_cuda_is_the_cpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.ort, "get_available_providers", lambda: [CPU])
    model = Model(Bundle.open(tiny_bundle), device="auto")
    assert (model.device, model.device_id) == ("cpu", 0)
    assert model.sessions.get(GRAPH_FILES[0]).get_providers() == [CPU]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Has onnxruntime list CUDA and start without it, as it does when a library is missing."""
    seen: list[Any] = []
    real = support.ort.InferenceSession

    def session(model: Any, options: Any, *, providers: Any, **named: Any) -> Any:
        seen.append(providers)
        return real(model, options, providers=[CPU], **named)

    monkeypatch.setattr(support.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(support.ort, "InferenceSession", session)
    return seen


@pytest.mark.parametrize(("device", "number"), [("auto", "0"), ("cuda", "0"), ("cuda:3", "3")])
def test_cuda_that_does_not_start_is_no_cpu(
    tiny_bundle: Path, asked: list[Any], device: str, number: str
) -> None:
    """A service that pays for a GPU must not run on the CPU without a word."""
    with pytest.raises(DependencyError, match="CUDA and cuDNN libraries"):
        Translator(tiny_bundle, device=device)
    # The graphs are opened side by side.
    assert asked
    # TF32 would round float32, so that translations differ from those of a CPU.
    wanted = [(CUDA, {"device_id": number, "use_tf32": "0"}), CPU]
    assert all(providers == wanted for providers in asked)


@pytest.mark.parametrize("entry", ["NoSuchProvider", ("NoSuchProvider", {})])
def test_unknown_provider(tiny_bundle: Path, entry: Any) -> None:
    with pytest.raises(DependencyError, match=r"no NoSuchProvider \(it has .*CPUExecution"):
        Translator(tiny_bundle, providers=[entry])


@pytest.mark.parametrize("given", [CPU, [5], [(CPU, 1)], [(CPU, {}, {})], 5], ids=repr)
def test_providers_of_another_kind(tiny_bundle: Path, given: Any) -> None:
    with pytest.raises(InvalidInputError, match="providers: expected a list of names"):
        Translator(tiny_bundle, providers=given)


def test_providers_take_the_place_of_the_usual_ones(tiny_bundle: Path, asked: list[Any]) -> None:
    given = [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]
    Translator(tiny_bundle, providers=given)
    assert asked == [given] * len(FUSED_FILES)


def translated(bundle: Path, **options: Any) -> list[tuple[int, ...]]:
    translator = Translator(bundle, **options)
    texts = ["Open the file.", "Quit"]
    found = translator.translate_batch(texts, source_lang="en", target_lang="de")
    return [translation.tokens for translation in found]


@pytest.mark.parametrize("value", ["0", "1"])
def test_session_options_are_passed_on(tiny_bundle: Path, value: str) -> None:
    given = {"session.disable_prepacking": value, "session.intra_op.allow_spinning": "0"}
    assert translated(tiny_bundle, session_options=given) == translated(tiny_bundle)
    model = Model(Bundle.open(tiny_bundle), session_options=given)
    for name in GRAPH_FILES:
        options = model.sessions.get(name).get_session_options()
        # Where we have a wish of our own, the caller's goes first.
        assert {key: options.get_session_config_entry(key) for key in given} == given


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "model : 79\nflags\t\t: fpu sse avx2 avx512f\n", True),
        ("x86_64", "model : 143\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n", False),
        ("AMD64", "flags : fpu avx2 avx_vnni\n", False),
        ("AMD64", None, True),
        ("x86_64", "nothing of the kind", True),
        ("aarch64", "Features : fp asimd\n", False),
        ("arm64", None, False),
    ],
)
def test_eight_bits_are_multiplied_exactly(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    cpuinfo: str | None,
    expected: bool,
) -> None:
    """Without VNNI sums saturate (seen in QEMU's Haswell: other translations)."""
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(support, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(support.platform, "machine", lambda: machine)
    options = Model(Bundle.open(tiny_bundle)).sessions.get(FUSED_FILES[0]).get_session_options()
    key = "session.x64quantprecision"
    if expected:
        assert options.get_session_config_entry(key) == "1"
    else:  # VNNI's own kernel is twice as fast, and as exact.
        with pytest.raises(RuntimeError, match="does not have"):
            options.get_session_config_entry(key)


@pytest.mark.parametrize(
    "options", [{"": "1"}, {"k" * 2000: "1"}, {"session.disable_prepacking": 1}, {5: "1"}, ["a"], 5]
)
def test_bad_session_option(tiny_bundle: Path, options: Any) -> None:
    """It is the caller's mistake, so the bundle is not blamed."""
    with pytest.raises(InvalidInputError, match="session_options"):
        Translator(tiny_bundle, session_options=options)


@pytest.mark.parametrize("version", ["1.20.1", "1.9.0", "0.99"])
def test_onnxruntime_that_is_too_old(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The fused graphs give other tokens with 1.20."""
    monkeypatch.setattr(support.ort, "__version__", version)
    for fused in (None, False):
        with pytest.raises(DependencyError, match=rf"onnxruntime 1\.21 or newer, found {version}"):
            Model(Bundle.open(tiny_bundle), fused=fused)


@pytest.mark.parametrize("version", ["1.21.0", "1.31.1+cpu", "1.100.0rc1", "2.0.0"])
def test_onnxruntime_that_is_not(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(support.ort, "__version__", version)
    assert Model(Bundle.open(tiny_bundle)).fused
