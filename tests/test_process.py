"""Work side by side: results, errors, threads that cannot be had or outlive the main one."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref
from functools import partial
from pathlib import Path

import pytest

from m2m100_onnx.process import side_by_side
from shell import run

# The main thread ends at once; what is left are a pool's thread, a plain one, and their work, which
# begins when executors take nothing more.
ENDED = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from m2m100_onnx import Translator
bundle, cache = sys.argv[1:]
asked = dict(source_lang="en", target_lang="de", beam_size=4, max_length=6)

def work():
    try:
        while ThreadPoolExecutor(1).submit(int).result() == 0:
            time.sleep(0.01)
    except RuntimeError:
        pass
    translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=2)
    for count in (1, 8):
        found = translator.translate(["Open the file."] * count, **asked)
        print(threading.current_thread().name[:6], count, len(set(found)), flush=True)

ThreadPoolExecutor(1, thread_name_prefix="pooled").submit(work)
threading.Thread(target=work, name="plain ").start()
"""


def test_results_come_in_order_and_the_first_function_stays_here() -> None:
    barrier = threading.Barrier(3, timeout=60)

    def met(number: int) -> tuple[int, bool]:
        barrier.wait()  # All are at work at once.
        return number, threading.current_thread() is here

    here = threading.current_thread()
    found = side_by_side(*(partial(met, number) for number in range(3)))
    assert found == [(0, True), (1, False), (2, False)]
    barrier = threading.Barrier(1)
    assert side_by_side(partial(met, 7)) == [(7, True)]


@pytest.mark.parametrize("failing", [{0}, {1}, {1, 2}, {0, 2}])
def test_the_first_error_is_raised_when_all_have_ended(failing: set[int]) -> None:
    ended: list[int] = []
    running, begun = threading.active_count(), threading.Barrier(3, timeout=60)

    def end(number: int) -> None:
        begun.wait()
        try:
            if number in failing:
                raise KeyboardInterrupt(number)
        finally:
            ended.append(number)

    with pytest.raises(KeyboardInterrupt, match=str(min(failing))):
        side_by_side(*(partial(end, number) for number in range(3)))
    assert sorted(ended) == [0, 1, 2]
    assert threading.active_count() == running


@pytest.mark.parametrize("failing", [0, 1])
def test_what_an_error_held_goes_with_it(failing: int) -> None:
    """Without waiting for the garbage collector: it may be all the memory of a search."""
    left: list[weakref.ref[set[int]]] = []

    def fail(number: int) -> None:
        held = {number}
        left.append(weakref.ref(held))
        if number == failing:
            raise ValueError(number)

    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            side_by_side(partial(fail, 0), partial(fail, 1))
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("allowed", [0, 1])
def test_without_more_threads_parts_run_one_after_another(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """A container's limit of processes counts threads too."""
    start, running, left = threading.Thread.start, threading.active_count(), [allowed]

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    calls: list[int] = []

    def call(number: int) -> int:
        calls.append(number)
        return number * number

    assert side_by_side(*(partial(call, number) for number in range(4))) == [0, 1, 4, 9]
    assert sorted(calls) == [0, 1, 2, 3]
    assert threading.active_count() == running


def test_nothing_begins_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    calls: list[int] = []

    def call(number: int) -> None:
        calls.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        side_by_side(partial(call, 0), partial(call, 1))
    assert calls == [0]


def test_threads_may_outlive_the_main_one(
    packed_bundle: Path, filled_cache: Path, environment: dict[str, str]
) -> None:
    """Where an executor would say that it cannot schedule new futures after shutdown."""
    done = run([sys.executable, "-c", ENDED, str(packed_bundle), str(filled_cache)], environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == [
        *("plain  1 1", "plain  8 1"),
        *("pooled 1 1", "pooled 8 1"),
    ]
