"""How a batch is shared out among threads: the same hypotheses, and sessions that cost little."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import golden
from m2m100_onnx import Translation, Translator, fused, sessions
from m2m100_onnx.bundle import FUSED_FILES
from m2m100_onnx.contention import Contention
from m2m100_onnx.decoding import DecoderState
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.sessions import ort

# Rows that pay for two threads: see generation._ROWS_A_PART.
MANY = {"beam_size": 3, "max_length": 12}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of many lengths."""
    return golden.Case("en-fr", 1, {}, every=10).texts()[:15]


class Watched(Translator):
    """Notes how many sentences are begun at a time, and whether serially."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begun: list[tuple[int, bool]] = []
        begin = self.model.begin

        def watched(ids: Any, *more: Any, serial: Any = False) -> DecoderState:
            # A function is asked at each step.
            self.begun.append((len(ids), serial is True))
            return begin(ids, *more, serial=serial)

        self.model.begin = watched  # type: ignore[method-assign]


def translated(translator: Translator, texts: list[str], **options: Any) -> list[Translation]:
    return translator.translate_batch(texts, source_lang="en", target_lang="fr", **options)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_large_batch_is_shared_out(
    packed_bundle: Path, filled_cache: Path, texts: list[str], threads: int
) -> None:
    one = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=1)
    expected = translated(one, texts, **MANY)
    assert one.begun == [(15, False)]
    several = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=threads)
    found = translated(several, texts, **MANY)
    assert sorted(several.begun) == sorted((len(texts[i::threads]), True) for i in range(threads))
    # Bit for bit, scores and order included.
    assert found == expected


def test_a_small_batch_is_not(packed_bundle: Path, filled_cache: Path, texts: list[str]) -> None:
    translator = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    translated(translator, texts[:9], **MANY)
    translated(translator, texts[:1], beam_size=30, max_length=5)
    assert translator.begun == [(9, False), (1, False)]


@pytest.mark.parametrize("fused", [None, False])
def test_no_second_copy_of_the_weights(
    packed_bundle: Path, texts: list[str], fused: bool | None
) -> None:
    """Without the packed cache, a session for each thread would have weights of its own."""
    translator = Watched(packed_bundle, cache_dir=False, intra_op_num_threads=2, fused=fused)
    translated(translator, texts, **MANY)
    assert translator.begun == [(15, False)]
    assert not translator.model.can_run_serially


def test_calls_side_by_side_use_a_thread_each(
    packed_bundle: Path, filled_cache: Path, texts: list[str]
) -> None:
    translator = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    expected = translated(translator, texts, **MANY)
    translator.begun.clear()
    # The first call waits in the model until the second is done.
    begin, first, done = translator.model.begin, threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> DecoderState:
        if not first.is_set():
            first.set()
            assert done.wait(60)
        return begin(*arguments, **options)

    translator.model.begin = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(translated, translator, texts[:2], **MANY)
        assert first.wait(60)
        try:
            found = translated(translator, texts, **MANY)
        finally:
            done.set()
        assert [t.tokens for t in waiting.result()] == [t.tokens for t in expected[:2]]
    assert translator.begun == [(15, True), (2, False)]
    assert found == expected
    # Whoever comes when all are done has the model to itself again.
    translated(translator, texts[:1], **MANY)
    assert translator.begun[-1] == (1, False)


def test_a_part_that_fails_fails_the_call(
    packed_bundle: Path, filled_cache: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    begin, here = translator.model.begin, threading.current_thread()

    def failing(*arguments: Any, **options: Any) -> DecoderState:
        if threading.current_thread() is not here:
            raise InferenceError("out of memory")
        return begin(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(translator.model, "begin", failing)
        with pytest.raises(InferenceError, match="out of memory"):
            translated(translator, texts, **MANY)
    translator.begun.clear()
    translated(translator, texts, **MANY)
    assert sorted(translator.begun) == [(7, True), (8, True)]


@pytest.mark.parametrize("count", [1, 15])
def test_no_memory_is_an_error_of_ours(
    packed_bundle: Path,
    filled_cache: Path,
    texts: list[str],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator = Translator(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    expected = translated(translator, texts[:count], **MANY)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_LARGE", 1)
        # More than any machine has; without it being asked for, the first of these blocks.
        patch.setattr(fused, "_CAPACITY", 1 << 46)
        with pytest.raises(InferenceError, match=r"out of memory: no [\d,]+ bytes for keys"):
            translated(translator, texts[:count], **MANY)
    assert translated(translator, texts[:count], **MANY) == expected
    assert not translator.generator._running


def test_sessions_are_opened_when_they_are_needed(
    packed_bundle: Path, filled_cache: Path, texts: list[str]
) -> None:
    translator = Translator(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    translator.generator._contention = Contention(lambda: 0)  # Whoever else is busy here.
    translated(translator, texts[:1])
    assert set(translator.model._sessions) == set(FUSED_FILES)
    translated(translator, texts, **MANY)
    threads = [threads_of(session) for session in translator.model._sessions.values()]
    assert sorted(threads) == [1, 1, 1, 2, 2, 2]


def threads_of(session: ort.InferenceSession) -> int:
    return int(session.get_session_options().intra_op_num_threads)


@pytest.mark.parametrize("threads", [2, 3])
def test_steps_change_between_one_core_and_two(
    packed_bundle: Path,
    filled_cache: Path,
    texts: list[str],
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A neighbour that comes and goes; of three cores, one taken leaves two."""
    used: list[int] = []

    def counted(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        used.append(threads_of(session))
        sessions.run(session, binding)

    monkeypatch.setattr(fused, "_CAPACITY", 8)
    options = {"beam_size": 3, "min_length": 40, "max_length": 50, "repetition_penalty": 1.2}
    one = Translator(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=1)
    expected = translated(one, texts[:4], **options)
    several = Translator(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=threads)
    turns = itertools.cycle([False, False, True])
    monkeypatch.setattr(several.generator._contention, "watch", lambda: lambda: next(turns))
    monkeypatch.setattr(fused, "run", counted)
    # Bit for bit; the buffers grow and beams expand on either.
    assert translated(several, texts[:4], **options) == expected
    assert set(used) == ({1, 2} if threads == 2 else {3})
    assert len(used) > 2 * 40


def answers_to(rates: list[int]) -> list[bool]:
    """What a search is told at each step, if so many switches follow it."""
    count = 0
    contention = Contention(lambda: count)
    crowded = contention.watch()
    answers = []
    for rate in rates:
        answers.append(crowded())
        count += rate
    return answers


def test_a_neighbour_is_told_by_the_kernel() -> None:
    """Four steps tell, 64 follow on one core, and then two are tried again."""
    answers = answers_to([0] * 20 + [40] * 64 + [0] * 100)
    first = answers.index(True)
    assert 20 + 2 <= first <= 20 + 8
    assert answers[first : first + 64] == [True] * 64
    assert not any(answers[first + 64 :])


def test_a_neighbour_that_stays_is_looked_at_less_and_less() -> None:
    lengths = [(k, len(list(run))) for k, run in itertools.groupby(answers_to([40] * 1100))]
    expected = [(True, 64), (False, 4), (True, 128), (False, 4), (True, 256), (False, 4)]
    assert lengths[1:9] == [*expected, (True, 256), (False, 4)]
    # Who finds the core free starts from the beginning.
    answers = answers_to([40] * 460 + [0] * 300 + [40] * 90)
    assert not any(answers[468:760])
    later = [len(list(run)) for alone, run in itertools.groupby(answers[760:]) if alone]
    assert later[0] == 64


def test_what_happens_between_searches_tells_nothing() -> None:
    count = 0
    contention = Contention(lambda: count)
    for _ in range(30):
        crowded = contention.watch()
        assert not any(crowded() for _ in range(12))
        count += 10_000
