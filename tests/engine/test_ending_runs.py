"""Calls that end in the middle of a run of a graph: what takes longer than a step of a search."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from m2m100_onnx import Cancellation, Cancelled, DeadlineExceeded, LanguageModel, Translator
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.model.termination import TerminatedError, Termination

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
TEXTS = ["Open the file.", "Do you want to save a copy of this document?", "Quit"]
TARGETS = ["Öffnen Sie die Datei.", "Möchten Sie eine Kopie speichern?", "Beenden"]
CALLS: dict[str, Callable[..., Any]] = {
    "translate": lambda t, **more: t.translate(TEXTS, **EN_DE, **more),
    "greedy": lambda t, **more: t.translate(TEXTS[0], **EN_DE, beam_size=1, **more),
    "stream": lambda t, **more: list(t.stream(TEXTS[0], **EN_DE, **more)),
    "alternatives": lambda t, **more: t.alternatives(TEXTS[0], **EN_DE, **more),
    "score": lambda t, **more: t.score(TEXTS, TARGETS, **EN_DE, **more),
    "entropy": lambda t, **more: t.score(TEXTS, TARGETS, **EN_DE, entropy=True, **more),
    "align": lambda t, **more: t.align(TEXTS, TARGETS, **EN_DE, **more),
    "embed": lambda t, **more: t.embed(TEXTS, source_lang="en", **more),
    "states": lambda t, **more: t.encode_states(TEXTS, source_lang="en", **more),
}


@pytest.fixture
def at_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Calls a function of another thread when a run has begun; returns the runs that began."""

    def install(number: int, function: Callable[[], None]) -> list[int]:
        runs: list[int] = []
        real = ort.InferenceSession.run_with_iobinding

        def run(self: Any, *arguments: Any) -> None:
            runs.append(len(arguments))
            if len(runs) == number:
                thread = threading.Thread(target=function)
                thread.start()
                thread.join()
            real(self, *arguments)

        monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
        return runs

    return install


@pytest.fixture(scope="module", params=["fused", "portable"])
def opened(demo_bundle: Path, request: pytest.FixtureRequest) -> Translator:
    translator = Translator(demo_bundle, fused=request.param == "fused")
    translator.align(TEXTS[:1], TARGETS[:1], **EN_DE)  # The heads are chosen once.
    return translator


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_no_run_follows_the_one_that_a_call_ends_in(
    opened: Translator, at_run: Callable[..., list[int]], name: str, number: int
) -> None:
    if number == 2 and name in ("embed", "states"):
        number = 1  # These have one run.
    before = CALLS[name](opened)
    cancellation = Cancellation()
    runs = at_run(number, cancellation.cancel)
    with pytest.raises(Cancelled):
        CALLS[name](opened, cancellation=cancellation)
    assert len(runs) == number
    # The next call is as good as before, and so is one that is never cancelled.
    assert str(CALLS[name](opened)) == str(before)
    assert str(CALLS[name](opened, cancellation=Cancellation(), timeout=600)) == str(before)


@pytest.mark.parametrize("name", ["translate", "score", "entropy"])
def test_native_runs_too(packed_bundle: Path, at_run: Callable[..., list[int]], name: str) -> None:
    translator = Translator(packed_bundle)
    CALLS[name](translator)
    cancellation = Cancellation()
    runs = at_run(2, cancellation.cancel)
    with pytest.raises(Cancelled):
        CALLS[name](translator, cancellation=cancellation)
    assert len(runs) == 2


def test_what_was_done_before_comes_with_the_error(
    opened: Translator, at_run: Callable[..., list[int]]
) -> None:
    """One text a batch: the run of the third one is ended."""
    states = opened.encode_states(TEXTS, source_lang="en")
    cancellation = Cancellation()
    at_run(3, cancellation.cancel)
    with pytest.raises(Cancelled) as found:
        opened.encode_states(TEXTS, source_lang="en", max_batch_tokens=1, cancellation=cancellation)
    assert len(found.value.finished) == 2
    for position, each in found.value.finished.items():
        assert each == pytest.approx(states[position], abs=1e-4)


@pytest.mark.parametrize("call", ["score", "encode", "generate"])
def test_language_models_too(
    causal_xlm: tuple[Path, Path], at_run: Callable[..., list[int]], call: str
) -> None:
    model = LanguageModel(causal_xlm[1])
    cancellation = Cancellation()
    runs = at_run(1, cancellation.cancel)
    with pytest.raises(Cancelled):
        getattr(model, call)("der Hund", language="en", cancellation=cancellation)
    assert len(runs) == 1


def test_deadlines_end_runs() -> None:
    """The timer ends what runs; a moment early counts as reached."""
    stop = Stop(timeout=0.01)
    with stop.ending_runs():
        termination = Termination.current()
        assert termination is not None
        waiting = threading.Event()
        while not termination.ended:
            waiting.wait(0.001)
        raise TerminatedError
    assert stop.reached
    assert isinstance(stop.error({}), DeadlineExceeded)
    assert Termination.current() is None


def test_contexts_end_with_their_thread_as_it_was() -> None:
    cancellation = Cancellation()
    outer, inner = Stop(cancellation=Cancellation()), Stop(cancellation=cancellation)
    with outer.ending_runs():
        first = Termination.current()
        with inner.ending_runs():
            assert Termination.current() is not first
            cancellation.cancel()
            raise TerminatedError
        assert inner.reached
        assert Termination.current() is first
        assert first is not None
        assert not first.ended
    with Stop().ending_runs():
        assert Termination.current() is None
