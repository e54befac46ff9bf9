"""Translations that are submitted: those of serial calls, whoever shares their batches."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import (
    Cancellation,
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InputTooLongError,
    InvalidInputError,
    Reranker,
    Score,
    Stats,
    Translator,
)
from m2m100_onnx.engine.aside import Aside
from translations import need_kernels

WAIT = 60
PAIR: Any = {"source_lang": "en", "target_lang": "de"}
TEXTS = ["Open the file.", "The file could not be found.", "Good morning.", "I like it."]
CASES = [
    {},
    {"beam_size": 1},
    {"beam_size": 2, "num_hypotheses": 2},
    {"max_new_tokens": 5, "target_prefix": "Die"},
    {"do_sample": True, "beam_size": 1, "seed": 5, "top_k": 9},
    {"terms": {"file": "Dokument"}, "max_length_ratio": 4.0},
    {"alignments": True, "beam_size": 2, "num_hypotheses": 2},
]


def check_equal_to_serial(translator: Translator, count: int, *, bits: bool = True) -> None:
    """Of mixed options and languages, submitted by many threads, each is that of a serial call."""
    chance = random.Random(count)
    cases = [
        (chance.choice(TEXTS), chance.choice(("de", "fr")), chance.choice(CASES))
        for _ in range(count)
    ]
    known: dict[str, Any] = {}
    for text, target, options in cases:
        key = str((text, target, options))
        if key not in known:
            given: Any = options
            if "target_prefix" in options:
                given = {**options, "target_prefix": [options["target_prefix"]]}
            (known[key],) = translator.translate_batch(
                [text], source_lang="en", target_lang=target, **given
            )

    def submit(case: tuple[str, str, Any]) -> Any:
        text, target, options = case
        future = translator.submit(text, source_lang="en", target_lang=target, **options)
        return future.result(WAIT)

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(submit, cases))
    for case, one in zip(cases, found, strict=True):
        assert one.tokens == known[str(case)].tokens
        if bits:
            assert one == known[str(case)]
        else:
            assert one.score == pytest.approx(known[str(case)].score, abs=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["portable", "fused"])
def test_translations_are_those_of_serial_calls(demo_bundle: Path, fused: bool) -> None:
    translator = Translator(demo_bundle, fused=fused, kernels=False)
    # In fp32 other graphs' scores depend on the batch in their last bit, as in all calls.
    check_equal_to_serial(translator, 100, bits=False)
    translator.close()
    with pytest.raises(ClosedError):
        translator.submit(TEXTS[0], source_lang="en", target_lang="de")


def test_native_translations_are_those_of_serial_calls(native_bundle: Path) -> None:
    need_kernels()
    for threads in (1, 2):
        translator = Translator(native_bundle, intra_op_num_threads=threads)
        assert translator.model.kind == "native"
        check_equal_to_serial(translator, 300)


def test_several_texts_of_a_request(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)
    texts, stats = [TEXTS[0], "", TEXTS[1]], Stats()
    future = translator.submit(texts, source_lang="en", target_lang=["de", "fr", "fr"], stats=stats)
    wanted = translator.translate_batch(texts, source_lang="en", target_lang=["de", "fr", "fr"])
    assert future.result(WAIT) == wanted
    assert (stats.texts, stats.target_tokens) == (3, sum(len(t.tokens) for t in wanted))
    with pytest.raises(InputTooLongError, match=r"texts\[1\]"):
        translator.submit(["a", "file " * 2000], source_lang="en", target_lang="de")
    with pytest.raises(InvalidInputError, match=r"texts: expected"):
        translator.submit(5, source_lang="en", target_lang="de")  # type: ignore[call-overload]
    assert translator.submit([], source_lang="en", target_lang="de").result(WAIT) == []


def test_a_term_that_cannot_be_is_the_error_of_its_request(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)
    terms = {"Open the file": "Das Dokument wird geöffnet"}
    future = translator.submit(
        TEXTS[0],
        source_lang="en",
        target_lang="de",
        terms=terms,
        max_length=14,
        beam_size=2,
        suppress_sequences=["Dokument"],
    )
    with pytest.raises(InvalidInputError, match=r"^terms: expected a translation with all of them"):
        future.result(WAIT)


def test_asyncio(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)

    async def main() -> list[str]:
        calls = [
            translator.translate_async(text, source_lang="en", target_lang="de") for text in TEXTS
        ]
        task = asyncio.create_task(
            translator.translate_async(TEXTS[0], source_lang="en", target_lang="fr")
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, CancelledError)):
            await task
        return list(await asyncio.gather(*calls))

    assert asyncio.run(main()) == translator.translate(TEXTS, source_lang="en", target_lang="de")


def test_the_queue_refuses_what_it_does_not_take(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)
    assert translator.submit(" ", source_lang="en", target_lang="de").result(WAIT).text == ""
    with pytest.raises(InvalidInputError, match="priority: expected an int, found True"):
        translator.submit("a", source_lang="en", target_lang="de", priority=True)


class Waiting:
    """A scorer that finds shorter texts more fluent, once it may."""

    def __init__(self) -> None:
        self.asked, self.may = threading.Event(), threading.Event()

    def score(self, texts: Sequence[str], *, language: str) -> list[Score]:
        assert language == "de"
        self.asked.set()
        assert self.may.wait(WAIT)
        return [Score((1,), ("x",), (-float(len(text)),)) for text in texts]


@pytest.mark.parametrize(
    "options",
    [{"alignments": True}, {"replace_unknowns": True}, {"alignments": True, "num_hypotheses": 3}],
)
def test_alignments_follow_a_search(demo_bundle: Path, options: Any) -> None:
    translator = Translator(demo_bundle)
    texts = [TEXTS[0], "", "The file 犬犬 could not be found."]
    languages = {"source_lang": "en", "target_lang": ["de", "de", "fr"]}
    wanted = translator.translate_batch(texts, **languages, **options)
    assert translator.submit(texts, **languages, **options).result(WAIT) == wanted
    (one,) = translator.translate_batch(texts[:1], source_lang="en", target_lang="de", **options)
    future = translator.submit(texts[0], source_lang="en", target_lang="de", **options)
    assert future.result(WAIT) == one


def test_a_rerank_holds_up_no_other_request(demo_bundle: Path) -> None:
    translator, waiting = Translator(demo_bundle), Waiting()
    options: Any = {"num_hypotheses": 4, "rerank": Reranker(waiting, 1.0)}
    future = translator.submit(TEXTS, **PAIR, **options)
    cancelled = translator.submit(TEXTS, **PAIR, **options)
    assert waiting.asked.wait(WAIT)
    translator.submit(TEXTS, **PAIR).result(WAIT)
    assert not future.done()
    assert cancelled.cancel()
    waiting.may.set()
    wanted = translator.translate_batch(TEXTS, **PAIR, **options)
    assert future.result(WAIT) == wanted
    assert wanted != translator.translate_batch(TEXTS, **PAIR, num_hypotheses=4)


def test_a_timeout_counts_what_follows_a_search(demo_bundle: Path) -> None:
    translator, waiting = Translator(demo_bundle), Waiting()
    options: Any = {"num_hypotheses": 2, "rerank": Reranker(waiting), "alignments": True}
    future = translator.submit(TEXTS, **PAIR, **options, timeout=5.0)
    assert waiting.asked.wait(WAIT)
    time.sleep(5.0)
    waiting.may.set()
    with pytest.raises(DeadlineExceeded):
        future.result(WAIT)
    cancellation, waiting = Cancellation(), Waiting()
    options["rerank"] = Reranker(waiting)
    future = translator.submit(TEXTS, **PAIR, **options, cancellation=cancellation)
    assert waiting.asked.wait(WAIT)
    cancellation.cancel()
    waiting.may.set()
    with pytest.raises(Cancelled):
        future.result(WAIT)


def test_closing_waits_for_what_follows_a_search(demo_bundle: Path) -> None:
    for timeout, ends in ((None, False), (0.2, True)):
        translator, waiting = Translator(demo_bundle), Waiting()
        rerank = Reranker(waiting, 1.0)
        future = translator.submit(
            TEXTS[0], **PAIR, num_hypotheses=2, rerank=rerank, alignments=True
        )
        assert waiting.asked.wait(WAIT)
        closing = threading.Thread(target=translator.close, args=(timeout,))
        closing.start()
        if ends:
            closing.join(WAIT)
        time.sleep(0.1)
        waiting.may.set()
        if ends:
            with pytest.raises(ClosedError):
                future.result(WAIT)
        else:
            assert future.result(WAIT).hypotheses[0].alignment is not None
            closing.join(WAIT)
        assert not closing.is_alive()


def test_work_aside_runs_where_no_thread_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the end of the main thread, in which Python starts none."""
    aside, done = Aside(1), []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(3):
        aside.put(partial(done.append, number))
    assert done == [0, 1, 2]
    assert aside.close(0)


def test_work_aside_takes_its_turns_and_may_close() -> None:
    aside, done, may = Aside(1), [], threading.Event()
    aside.put(lambda: done.append(may.wait(WAIT)))
    for number in range(3):
        aside.put(partial(done.append, number))
    closed: Future[bool] = Future()
    aside.put(lambda: closed.set_result(aside.close(WAIT)))
    assert not aside.close(0.05)
    may.set()
    assert closed.result(WAIT)
    assert aside.close(WAIT)
    assert done == [True, 0, 1, 2]
