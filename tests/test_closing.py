"""A translator ends: closing, memory, and calls that are under way."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import ClosedError, M2M100Error, Translator
from translations import GREEDY, need_kernels

TEXTS = ["Quit", "Open the file.", "Save a copy before you close the window."]


@pytest.fixture
def own(demo_bundle: Path) -> Iterator[Translator]:
    """A translator that a test may close."""
    with Translator(demo_bundle, intra_op_num_threads=1) as translator:
        yield translator


def test_a_closed_translator_refuses_calls(own: Translator) -> None:
    own.translate("Quit", **GREEDY)
    own.close()
    own.close()
    for call in (own.translate, own.translate_batch, own.translate_iterable):
        with pytest.raises(ClosedError, match="the Translator is closed"):
            call(["Quit"], **GREEDY)
    with pytest.raises(ClosedError), own:
        pass
    # It is no wrong request, which a service would answer as the client's fault.
    assert not issubclass(ClosedError, ValueError)
    assert issubclass(ClosedError, M2M100Error)


def test_with_closes(demo_bundle: Path) -> None:
    with Translator(demo_bundle, lazy=True) as translator:
        translator.translate("Quit", **GREEDY)
    with pytest.raises(ClosedError):
        translator.translate("Quit", **GREEDY)


def test_closing_frees_the_sessions(own: Translator) -> None:
    own.translate("Quit", **GREEDY)
    sessions = [weakref.ref(one) for one in own.model.sessions._sessions.values()]
    assert sessions
    own.close()
    gc.collect()
    assert [one() for one in sessions] == [None] * len(sessions)


def test_a_translator_that_is_dropped_is_freed_at_once(demo_bundle: Path) -> None:
    """By its count of references: graphs must not wait for the garbage collector."""
    translator = Translator(demo_bundle, lazy=True)
    translator.translate("Quit", **GREEDY)
    model = weakref.ref(translator.model)
    gc.disable()
    try:
        del translator
        assert model() is None
    finally:
        gc.enable()


def test_calls_of_other_threads_end_first(own: Translator) -> None:
    started, go = threading.Event(), threading.Event()
    found: list[Any] = []

    def progress(*_: object) -> None:
        started.set()
        go.wait(30)

    def work() -> None:
        found.append(own.translate(TEXTS, **GREEDY, max_batch_tokens=1, progress=progress))

    expected = own.translate(TEXTS, **GREEDY)
    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(30)
    closer = threading.Thread(target=own.close)
    closer.start()
    while not repr(own).endswith("closed>"):
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        own.translate("Quit", **GREEDY)
    assert closer.is_alive()
    go.set()
    for thread in (worker, closer):
        thread.join(30)
        assert not thread.is_alive()
    assert found == [expected]


def test_a_call_that_closes_its_own_translator_ends(own: Translator) -> None:
    """As a signal handler does that runs in the thread of the call."""
    expected = own.translate(TEXTS, **GREEDY)
    found = own.translate(TEXTS, **GREEDY, max_batch_tokens=1, progress=lambda *_: own.close())
    assert found == expected
    assert own.model.sessions._sessions == {}
    with pytest.raises(ClosedError):
        own.translate("Quit", **GREEDY)


def test_a_stream_ends_with_its_window(own: Translator) -> None:
    read: list[str] = []
    texts = (read.append(text) or text for text in TEXTS)
    stream = own.translate_iterable(texts, **GREEDY, read_ahead=1)
    next(stream)
    own.close()
    with pytest.raises(ClosedError):
        next(stream)
    assert read == TEXTS[:1]


def test_a_forked_child_waits_for_none_of_its_parents_calls(own: Translator) -> None:
    inside: list[int] = []

    def progress(*_: object) -> None:
        child = os.fork()
        if child == 0:
            threading.Timer(20, os._exit, [1]).start()
            # Another thread of the child: the call under way is not its own.
            closer = threading.Thread(target=own.close)
            closer.start()
            closer.join()
            os._exit(7)
        inside.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    own.translate("Quit", **GREEDY, progress=progress)
    assert inside == [7]
    assert own.translate("Quit", **GREEDY)


def test_memory_is_released_and_graphs_open_again(own: Translator) -> None:
    expected = own.translate(TEXTS, **GREEDY)
    own.release_memory()
    assert own.model.sessions._sessions == {}
    assert own.translate(TEXTS, **GREEDY) == expected


def test_releasing_memory_beside_calls(own: Translator) -> None:
    expected = own.translate(TEXTS, **GREEDY)
    found: list[Any] = []

    def work() -> None:
        found.extend(own.translate(TEXTS, **GREEDY) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        own.release_memory()
    assert found == [expected] * 40


MEMORY = """
import sys
from m2m100_onnx import Translator

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("RssAnon"))

bundle, cache, way, kernels = sys.argv[1:]
en_de = {"source_lang": "en", "target_lang": "de"}
texts = [f"Select the files number {n} that you want to delete." for n in range(192)]
kernels = kernels == "native weights"
translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=1, kernels=kernels)
translator.translate("Quit", **en_de)
before = private()
translator.translate(texts, **en_de, beam_size=5, max_length=24, max_batch_tokens=1 << 20)
large = private()
getattr(translator, way)()
print(before, large, private())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("way", ["close", "release_memory"])
@pytest.mark.parametrize("kind", ["private weights", "mapped weights", "native weights"])
def test_the_memory_of_a_big_batch_goes_back_to_the_system(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path, kind: str, way: str
) -> None:
    if kind == "native weights":
        need_kernels()
    bundle = request.getfixturevalue("demo_bundle" if kind[0] == "p" else "packed_bundle")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(bundle), str(tmp_path / "cache"), way, kind],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, large, after = map(int, done.stdout.split())
    # Native graphs never have all logits, so the batch takes little.
    native = kind == "native weights"
    assert native or large > before + 40, "the batch is too small to show anything"
    assert after < before + 10


def test_what_it_looks_like(own: Translator, demo_bundle: Path) -> None:
    shown = f"<Translator of '{demo_bundle}': fp32, 6 languages, fused graphs on cpu, 1 thread>"
    assert repr(own) == shown
    own.close()
    assert repr(own) == shown.replace(">", ", closed>")
    portable = Translator(demo_bundle, lazy=True, fused=False, intra_op_num_threads=1)
    assert "portable graphs" in repr(portable)
