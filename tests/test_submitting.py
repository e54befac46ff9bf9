"""Translations that are submitted: those of serial calls, whoever shares their batches."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import (
    ClosedError,
    InputTooLongError,
    InvalidInputError,
    Stats,
    Translator,
)

WAIT = 60
TEXTS = ["Open the file.", "The file could not be found.", "Good morning.", "I like it."]
CASES = [
    {},
    {"beam_size": 1},
    {"beam_size": 2, "num_hypotheses": 2},
    {"max_new_tokens": 5, "target_prefix": "Die"},
    {"do_sample": True, "beam_size": 1, "seed": 5, "top_k": 9},
    {"terms": {"file": "Dokument"}, "max_length_ratio": 4.0},
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
    for options in ({"alignments": True}, {"replace_unknowns": True}):
        with pytest.raises(InvalidInputError, match="for the queue, which translates alone"):
            translator.submit("a", source_lang="en", target_lang="de", **options)
