"""What a call says about itself: progress, counts and times, and the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from m2m100_onnx import Cancellation, Cancelled, InvalidInputError, Stats, Translator
from translations import EN_DE, GREEDY

TEXTS = ["Quit", "", "Open the file.", "Save a copy before you close the window."]


def test_progress_of_a_batch(translator: Translator) -> None:
    seen: list[tuple[int, int | None]] = []
    asked: dict[str, Any] = {**GREEDY, "max_batch_tokens": 1}
    found = translator.translate_batch(TEXTS, **asked, progress=lambda *now: seen.append(now))
    # The empty text first, which needs no model; then a batch for each other text.
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found == translator.translate_batch(TEXTS, **asked)
    seen.clear()
    translator.translate(TEXTS, **GREEDY, progress=lambda *now: seen.append(now))
    assert seen[-1] == (4, 4)


def test_progress_of_a_stream(translator: Translator) -> None:
    seen: list[tuple[int, int | None]] = []
    stream = translator.translate_iterable(
        iter(TEXTS), **GREEDY, read_ahead=2, progress=lambda *now: seen.append(now)
    )
    next(stream)
    assert seen == [(1, None), (2, None)]
    list(stream)
    assert seen[-1] == (4, None)
    list(translator.translate_iterable(TEXTS, **GREEDY, progress=lambda *now: seen.append(now)))
    assert seen[-1] == (4, 4)


def test_texts_that_cannot_be_translated_are_done_too(translator: Translator) -> None:
    seen: list[tuple[int, int | None]] = []
    texts = ["Quit", "word " * 400]
    translator.translate_batch(
        texts, **GREEDY, on_error="skip", progress=lambda *now: seen.append(now)
    )
    assert seen == [(1, 2), (2, 2)]


def test_an_error_of_progress_ends_the_call(translator: Translator) -> None:
    def progress(done: int, _: int | None) -> None:
        raise LookupError(done)

    with pytest.raises(LookupError, match=r"^1$"):
        translator.translate(TEXTS, **GREEDY, progress=progress)
    assert translator.translate(TEXTS, **GREEDY)[1] == ""


def test_counts_are_those_of_the_texts(translator: Translator) -> None:
    stats = Stats()
    found = translator.translate_batch(TEXTS, **GREEDY, max_batch_tokens=1, stats=stats)
    assert (stats.texts, stats.errors, stats.batches) == (4, 0, 3)
    assert stats.characters == sum(map(len, TEXTS))
    assert stats.source_tokens == sum(len(translator.encode(t, "en")) for t in TEXTS if t)
    assert stats.target_tokens == sum(len(one.tokens) for one in found)
    assert min(stats.encode_seconds, stats.search_seconds, stats.decode_seconds) > 0
    assert stats.seconds == stats.encode_seconds + stats.search_seconds + stats.decode_seconds


def test_counts_add_up_over_calls_and_streams(translator: Translator) -> None:
    batch, stream = Stats(), Stats()
    texts = [*TEXTS, "word " * 400]
    for _ in range(2):
        translator.translate_batch(texts, **GREEDY, on_error="skip", stats=batch)
    list(
        translator.translate_iterable(
            texts * 2, **GREEDY, on_error="skip", read_ahead=3, stats=stream
        )
    )
    counts = ("texts", "errors", "characters", "source_tokens", "target_tokens")
    assert [getattr(batch, name) for name in counts] == [getattr(stream, name) for name in counts]
    assert (batch.texts, batch.errors) == (8, 2)


def test_a_stopped_call_counts_what_it_did(translator: Translator) -> None:
    stats, cancellation = Stats(), Cancellation()

    def progress(done: int, _: int | None) -> None:
        if done == 2:
            cancellation.cancel()

    with pytest.raises(Cancelled) as caught:
        translator.translate_batch(
            TEXTS,
            **GREEDY,
            max_batch_tokens=1,
            stats=stats,
            progress=progress,
            cancellation=cancellation,
        )
    assert stats.texts == len(caught.value.finished) == 2


def test_the_log_has_numbers_and_no_words(
    translator: Translator, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Zanzibar password"
    texts: list[Any] = [secret, "Open the file.", f"{secret} " * 200, f"{secret} \ud800"]
    with caplog.at_level(logging.DEBUG, "m2m100_onnx"):
        found = translator.translate_batch(texts, **GREEDY, on_error="return")
        with pytest.raises(InvalidInputError):
            translator.translate([*texts[:2], texts[3]], **GREEDY)
        list(translator.translate_iterable(texts[:2], **GREEDY))
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    characters = len(secret) + len(texts[1])
    assert sum(f"2 texts of {characters} characters: " in message for message in messages) == 2
    assert any("texts[2] is not translated: InputTooLongError" in message for message in messages)
    assert any("ends after 2 texts: InvalidInputError" in message for message in messages)
    words = {secret, "Zanzibar", "password", "file", *found[1].text.split()}  # type: ignore[union-attr]
    logged = {
        part.strip(".,:;") for record in caplog.records for part in record.getMessage().split()
    }
    assert logged & words == set()


def test_by_default_nothing_is_logged(
    translator: Translator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "m2m100_onnx"):
        translator.translate_batch(["Quit", "word " * 400], **GREEDY, on_error="return")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("progress", "yes", "progress: expected a function, found str"),
        ("progress", 1, "progress: expected a function, found int"),
        ("stats", {}, "stats: expected a Stats, found dict"),
        ("stats", Stats, "stats: expected a Stats, found type"),
    ],
)
def test_something_else_is_refused(
    translator: Translator, name: str, value: Any, message: str
) -> None:
    for call in (translator.translate, translator.translate_batch, translator.translate_iterable):
        with pytest.raises(InvalidInputError, match=message):
            call(["Quit"], **EN_DE, **{name: value})
