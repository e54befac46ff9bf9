"""How a batch is shared out among threads: the same hypotheses, and sessions that cost little."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import golden
from m2m100_onnx import Translation, Translator
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.model import blocks, graphs, in_place
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.beam import BeamSearch
from m2m100_onnx.search.state import DecoderState
from translations import need_kernels

# Rows that pay for two threads, without kernels: see `Graphs.rows_a_part`.
MANY = {"beam_size": 3, "max_length": 12}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of many lengths."""
    return golden.Case("en-fr", 1, {}, every=10).texts()[:15]


class Watched(Translator):
    """Notes how many sentences are begun at a time, and whether serially."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"kernels": False, **options})
        self.begun: list[tuple[int, bool]] = []
        begin = self.model.begin

        def watched(ids: Any, *more: Any, serial: bool = False) -> DecoderState:
            self.begun.append((len(ids), serial))
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


def test_native_graphs_share_out_batches_of_many_rows(
    native_bundles: dict[str, Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights are few; a large model's threads would each read all of them."""
    need_kernels()
    options: Any = {"intra_op_num_threads": 2, "kernels": True}
    many = {**MANY, "beam_size": 5}
    small = Watched(native_bundles["int8"], **options)
    translated(small, texts[:12], **many)
    assert small.begun == [(12, False)]
    found = translated(small, texts, **many)
    assert sorted(small.begun[1:]) == [(7, True), (8, True)]
    monkeypatch.setattr(graphs, "_SMALL", 1 << 20)
    large = Watched(native_bundles["int8"], **options)
    # Bit for bit, scores and order included.
    assert translated(large, texts, **many) == found
    assert large.begun == [(15, False)]


@pytest.mark.parametrize("fused", [None, False])
def test_no_second_copy_of_the_weights(
    packed_bundle: Path, texts: list[str], fused: bool | None
) -> None:
    """Without the weights cache, a session for each thread would have weights of its own."""
    options: Any = {"fused": fused}
    translator = Watched(packed_bundle, cache_dir=False, intra_op_num_threads=2, **options)
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


@pytest.mark.parametrize("error", [InferenceError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_part_that_fails_ends_the_others(
    packed_bundle: Path,
    filled_cache: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """Otherwise Ctrl-C would wait for the rest of a batch."""
    translator = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    here, steps = threading.current_thread(), {True: 0, False: 0}
    both = threading.Barrier(2, timeout=60)
    step = BeamSearch.step

    def counted(self: BeamSearch) -> tuple[int, ...]:
        mine = threading.current_thread() is here
        steps[mine] += 1
        if steps[mine] == 5:
            both.wait()
            if mine:
                raise error
        return step(self)

    monkeypatch.setattr(BeamSearch, "step", counted)
    options = {"beam_size": 3, "min_length": 60, "max_length": 62}
    with pytest.raises(type(error)):
        translated(translator, texts, **options)
    assert steps[True] == 5
    # Of 60 steps, the other part makes those that it had begun.
    assert steps[False] < 20


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
        patch.setattr(blocks, "_LARGE", 1)
        # More than any machine has; without it being asked for, the first of these blocks.
        patch.setattr(in_place, "CAPACITY", 1 << 46)
        with pytest.raises(InferenceError, match=r"out of memory: no [\d,]+ bytes for keys"):
            translated(translator, texts[:count], **MANY)
        stream = translator.stream(texts[0], source_lang="en", target_lang="de")
        with pytest.raises(InferenceError, match=r"out of memory: no [\d,]+ bytes for keys"):
            list(stream)
        with pytest.raises(InferenceError, match=r"out of memory: no [\d,]+ bytes for keys"):
            translator.alternatives(texts[0], source_lang="en", target_lang="de")
    assert translated(translator, texts[:count], **MANY) == expected
    assert not translator.generator._running


def test_sessions_are_opened_when_they_are_needed(
    packed_bundle: Path, filled_cache: Path, texts: list[str]
) -> None:
    translator = Watched(packed_bundle, cache_dir=filled_cache, intra_op_num_threads=2)
    translated(translator, texts[:1])
    assert set(translator.model.sessions._sessions) == set(translator.model.files)
    translated(translator, texts, **MANY)
    threads = [threads_of(session) for session in translator.model.sessions._sessions.values()]
    assert sorted(threads) == [1, 1, 1, 2, 2, 2]


def threads_of(session: ort.InferenceSession) -> int:
    return int(session.get_session_options().intra_op_num_threads)
