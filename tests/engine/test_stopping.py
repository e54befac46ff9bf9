"""Calls that end early: at a deadline, or cancelled from another thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import golden
from m2m100_onnx import (
    Cancellation,
    Cancelled,
    DeadlineExceeded,
    InvalidInputError,
    StoppedError,
    Translation,
    Translator,
)
from m2m100_onnx.engine import stopping
from m2m100_onnx.search.beam import BeamSearch
from m2m100_onnx.text.tokenizer import Tokenizer

EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of many lengths, whose translations end at different steps."""
    return golden.Case("en-de", 1, {}, every=10).texts()[:12]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Calls a function when step number N of all searches is done; returns the steps made."""

    def install(number: int, function: Callable[[], None]) -> list[int]:
        steps: list[int] = []
        real = BeamSearch.step

        def step(self: BeamSearch) -> tuple[int, ...]:
            ended = real(self)
            steps.append(len(self.live))
            if len(steps) == number:
                thread = threading.Thread(target=function)
                thread.start()
                thread.join()
            return ended

        monkeypatch.setattr(BeamSearch, "step", step)
        return steps

    return install


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 4}], ids=str)
@pytest.mark.parametrize("number", [1, 6, 18])
def test_a_cancelled_call_ends_with_its_step(
    translator: Translator,
    texts: list[str],
    at_step: Callable[..., list[int]],
    options: dict[str, Any],
    number: int,
) -> None:
    expected = translator.translate_batch(texts, **EN_DE, **options)
    cancellation = Cancellation()
    steps = at_step(number, cancellation.cancel)
    with pytest.raises(Cancelled, match="cancelled") as found:
        translator.translate_batch(texts, **EN_DE, **options, cancellation=cancellation)
    assert len(steps) == number
    assert cancellation.cancelled
    # The live ones are missing, and all others are what they would have been.
    finished = found.value.finished
    assert len(finished) == len(texts) - steps[-1]
    assert all(translation == expected[n] for n, translation in finished.items())
    # It stays cancelled, and the translator is as good as before.
    with pytest.raises(Cancelled):
        translator.translate_batch(texts, **EN_DE, **options, cancellation=cancellation)
    assert len(steps) == number
    assert translator.translate_batch(texts, **EN_DE, **options) == expected


def test_some_sentences_were_finished(
    translator: Translator, texts: list[str], at_step: Callable[..., list[int]]
) -> None:
    """Otherwise the test above would say little."""
    cancellation = Cancellation()
    at_step(18, cancellation.cancel)
    with pytest.raises(Cancelled) as found:
        translator.translate_batch(texts, **EN_DE, beam_size=1, cancellation=cancellation)
    assert 0 < len(found.value.finished) < len(texts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(stopping, "time", Clock)
    return now


def test_a_deadline_ends_a_call_with_its_step(
    translator: Translator, texts: list[str], at_step: Callable[..., list[int]], clock: list[float]
) -> None:
    expected = translator.translate_batch(texts, **EN_DE, timeout=3)
    steps = at_step(8, lambda: clock.__setitem__(0, 103.0))
    with pytest.raises(DeadlineExceeded, match="timeout: 3 s are over") as found:
        translator.translate_batch(texts, **EN_DE, timeout=3)
    assert len(steps) == 8
    assert isinstance(found.value, TimeoutError)
    assert all(translation == expected[n] for n, translation in found.value.finished.items())
    steps.clear()
    assert translator.translate_batch(texts, **EN_DE, timeout=3) == expected


def test_batches_that_were_done_come_with_the_error(
    translator: Translator, texts: list[str], at_step: Callable[..., list[int]]
) -> None:
    """Longest first, one sentence a batch: the third batch is the one that is cut short."""
    options: dict[str, Any] = {**EN_DE, "beam_size": 1, "max_batch_tokens": 1}
    expected = translator.translate_batch(texts, **options)
    cancellation = Cancellation()
    by_length = sorted(range(len(texts)), key=lambda n: -len(translator.encode(texts[n], "en")))
    done = sum(len(expected[n].tokens) - 2 for n in by_length[:2])
    at_step(done + 1, cancellation.cancel)
    with pytest.raises(StoppedError) as found:
        translator.translate_batch(texts, **options, cancellation=cancellation)
    assert found.value.finished == {n: expected[n] for n in by_length[:2]}
    assert "translated by then: 2" in str(found.value)


def test_no_time_at_all(translator: Translator) -> None:
    with pytest.raises(DeadlineExceeded) as found:
        translator.translate(["Quit", ""], **EN_DE, timeout=0)
    assert found.value.finished == {}
    assert (found.value.errno, found.value.strerror) == (None, None)


def test_reading_stops_too(
    translator: Translator, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without words never comes to a search, and a long list is read before the first."""

    def ticking() -> Iterator[str]:
        while True:
            clock[0] += 1
            yield ""

    found: list[Translation] = []
    stream = translator.translate_iterable(ticking(), **EN_DE, timeout=600, read_ahead=100)
    with pytest.raises(DeadlineExceeded):
        found.extend(stream)
    assert 500 <= len(found) <= 600
    cancellation = Cancellation()
    cancellation.cancel()
    encoded: list[str] = []
    monkeypatch.setattr(Tokenizer, "encode", lambda _, text, __: encoded.append(text))
    with pytest.raises(Cancelled):
        translator.translate_batch(["Open the file."] * 50, **EN_DE, cancellation=cancellation)
    assert not encoded


def test_a_stopped_call_opens_no_graph(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle, lazy=True)
    with pytest.raises(DeadlineExceeded):
        translator.translate("Quit", **EN_DE, timeout=0)
    assert not translator.model.sessions._sessions


def test_parts_of_a_batch_stop_together(
    packed_bundle: Path, filled_cache: Path, texts: list[str]
) -> None:
    translator = Translator(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    options: dict[str, Any] = {**EN_DE, "beam_size": 3, "max_length": 60, "min_length": 50}
    expected = translator.translate_batch(texts, **options)
    cancellation = Cancellation()
    threading.Timer(0.01, cancellation.cancel).start()

    def until_cancelled() -> None:
        while True:
            again = translator.translate_batch(texts, **options, cancellation=cancellation)
            assert again == expected

    with pytest.raises(Cancelled) as found:
        until_cancelled()
    assert all(translation == expected[n] for n, translation in found.value.finished.items())


def test_a_stream_yields_what_is_done(
    translator: Translator, texts: list[str], at_step: Callable[..., list[int]]
) -> None:
    options: dict[str, Any] = {**EN_DE, "beam_size": 1}
    expected = translator.translate_batch(texts, **options)
    first = max(len(one.tokens) for one in expected[:4]) - 2
    cancellation = Cancellation()
    steps = at_step(first + 1, cancellation.cancel)
    found: list[Translation] = []
    stream = translator.translate_iterable(
        iter(texts), **options, read_ahead=4, cancellation=cancellation
    )
    with pytest.raises(Cancelled) as caught:
        found.extend(stream)
    assert found == expected[:4]
    assert caught.value.finished == {}
    assert len(steps) == first + 1


def test_a_real_deadline(translator: Translator, texts: list[str]) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        translator.translate(texts * 200, **EN_DE, timeout=0.2)
    # The whole takes many seconds; how long one step may take depends on the machine's load.
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "value", [1, "now", threading.Event(), Cancellation], ids=lambda v: type(v).__name__
)
def test_something_else_than_a_cancellation(translator: Translator, value: Any) -> None:
    for call in (translator.translate, translator.translate_batch, translator.translate_iterable):
        with pytest.raises(InvalidInputError, match="cancellation: expected a Cancellation"):
            call(["Quit"], **EN_DE, cancellation=value)
