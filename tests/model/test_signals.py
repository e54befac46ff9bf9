"""What a signal's handler raises comes out as it is: time limits of Celery and RQ, SIGALRM."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from interrupting import interrupted_at
from m2m100_onnx import Bundle, Translator
from m2m100_onnx.bundle.graphs import FUSED_SOURCE_FILE
from m2m100_onnx.model import support
from m2m100_onnx.model.model import Model
from packing import entries, tokens, written

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has few signals")

FILES = {
    *("sessions.py", "support.py", "weights_cache.py", "weights_cache_entry.py"),
    *("weights_cache_files.py", "weights_cache_lock.py", "onnxruntime_inference_collection.py"),
}


class TimeLimit(Exception):  # noqa: N818 - as Celery's SoftTimeLimitExceeded
    """What a task queue raises."""


# What the runtime's own calls raise as well: files, JSON, onnxruntime, memory.
Limit = Callable[[Exception], None]
KINDS = (TimeLimit, TimeoutError, OSError, ValueError, KeyError, RuntimeError, MemoryError)


@pytest.fixture
def limit() -> Iterator[Limit]:
    """Makes SIGUSR1 raise an exception."""
    before = signal.getsignal(signal.SIGUSR1)

    def install(error: Exception) -> None:
        def late(number: int, _: FrameType | None) -> None:
            assert number == signal.SIGUSR1
            raise error

        signal.signal(signal.SIGUSR1, late)

    yield install
    signal.signal(signal.SIGUSR1, before)


def source_graph(bundle: Path, cache: Path) -> Callable[[], Any]:
    """Opens a graph in this thread, where handlers run."""

    def open_it() -> None:
        model = Model(Bundle.open(bundle), cache_dir=cache, intra_op_num_threads=1)
        model.sessions.get(FUSED_SOURCE_FILE)

    return open_it


@pytest.mark.parametrize("kind", KINDS)
def test_during_a_run(
    kind: type[Exception],
    tiny_bundle: Path,
    limit: Limit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator = Translator(tiny_bundle, intra_op_num_threads=1)
    error = kind("late")
    limit(error)
    real = support.ort.InferenceSession.run_with_iobinding

    def run(session: Any, binding: Any) -> None:
        real(session, binding)
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(support.ort.InferenceSession, "run_with_iobinding", run)
    with pytest.raises(kind) as caught:
        translator.translate("Open the file.", source_lang="en", target_lang="de")
    assert caught.value is error


def translate_for_a_minute(translator: Translator) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        translator.translate("Open the file.", source_lang="en", target_lang="de")


def test_a_timer(tiny_bundle: Path) -> None:
    """With real time, and a handler that anybody would write."""
    translator = Translator(tiny_bundle, intra_op_num_threads=1)

    def late(*_: object) -> None:
        raise TimeoutError("late")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError, match="late"):
            translate_for_a_minute(translator)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raised_at(moment: int, function: Callable[[], Any], limit: Limit) -> bool:
    """Calls a function, and checks that a handler's exception comes out of it as it is.

    Returns:
        Whether the function has that many moments.
    """
    error = KINDS[moment % len(KINDS)]("late")
    limit(error)
    found = None
    try:
        reached = interrupted_at(moment, function, FILES, signal.SIGUSR1)
    except KINDS as caught:
        reached, found = True, caught
    assert found is (error if reached else None), f"{error!r} at {moment} became {found!r}"
    return reached


@pytest.mark.parametrize("start", range(3))
def test_at_any_moment_of_a_load(
    start: int, packed_bundle: Path, packed_cache: Path, limit: Limit
) -> None:
    """It comes out as it is, and the entries of the cache stay."""
    before, moment = written(packed_cache), start
    while raised_at(moment, source_graph(packed_bundle, packed_cache), limit):
        moment += 3
    assert moment > 90
    assert written(packed_cache) == before
    assert all(entry.verify() for entry in entries(packed_cache).values())


def test_at_any_moment_of_packing(
    packed_bundle: Path,
    tmp_path: Path,
    limit: Limit,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It comes out as it is, and what is there afterwards is whole and can be used."""
    cache, moment = tmp_path / "0", 0
    while raised_at(moment, source_graph(packed_bundle, cache), limit):
        assert all(entry.verify() for entry in entries(cache).values())
        if moment % 36 == 0:
            assert tokens(packed_bundle, cache) == unpacked_tokens
        moment += 4
        cache = tmp_path / str(moment)
    assert moment > 200
    assert not caplog.records


def test_a_lack_of_memory_or_threads_costs_no_entry(
    packed_bundle: Path, packed_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where onnxruntime cannot open the bundle's graph either, the entry is not to blame."""
    before = written(packed_cache)

    def fail(*_: object, **__: object) -> None:
        failure: type[Exception] = support.ort.capi.onnxruntime_pybind11_state.Fail
        raise failure("pthread_create failed")

    with monkeypatch.context() as patch:
        patch.setattr(support.ort, "InferenceSession", fail)
        with pytest.raises(ValueError, match="pthread_create failed"):
            source_graph(packed_bundle, packed_cache)()
    assert written(packed_cache) == before
