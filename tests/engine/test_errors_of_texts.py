"""Texts that cannot be translated: in a batch and in a stream, raised, returned or skipped."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from m2m100_onnx import (
    InputTooLongError,
    InvalidInputError,
    M2M100Error,
    Translation,
    Translator,
    UnknownLanguageError,
)
from translations import EN_DE, GREEDY

LONG = "word " * 400
TEXTS: list[Any] = ["Quit", LONG, "Open the file.", None, "", "bad \ud800", "Save a copy."]
BAD = {1: InputTooLongError, 3: InvalidInputError, 5: InvalidInputError}
GOOD = [position for position in range(len(TEXTS)) if position not in BAD]


@pytest.fixture(scope="module")
def expected(translator: Translator) -> list[Translation]:
    """The translations of the good texts."""
    return translator.translate_batch([TEXTS[n] for n in GOOD], **GREEDY)


def by_batch(translator: Translator, texts: Any, **options: Any) -> list[Any]:
    return [*translator.translate_batch(texts, **options)]


def by_stream(translator: Translator, texts: Any, **options: Any) -> list[Any]:
    return [*translator.translate_iterable(iter(texts), read_ahead=3, **options)]


CALLS = pytest.mark.parametrize("call", [by_batch, by_stream])


@CALLS
def test_errors_are_returned_in_their_places(
    translator: Translator, expected: list[Translation], call: Any
) -> None:
    found = call(translator, TEXTS, **GREEDY, on_error="return")
    assert [found[n] for n in GOOD] == expected
    assert len(found) == len(TEXTS)
    for position, kind in BAD.items():
        error = found[position]
        assert type(error) is kind
        assert error.position == position
        assert str(error).startswith(f"texts[{position}]: ")
        # What a frame refers to would live as long as the error.
        assert error.__traceback__ is None


@CALLS
def test_bad_texts_are_skipped_and_logged(
    translator: Translator,
    expected: list[Translation],
    caplog: pytest.LogCaptureFixture,
    call: Any,
) -> None:
    with caplog.at_level(logging.WARNING, "m2m100_onnx"):
        assert call(translator, TEXTS, **GREEDY, on_error="skip") == expected
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"texts[{position}] is not translated: {kind.__name__}" for position, kind in BAD.items()
    ]


@CALLS
def test_a_bad_language_of_one_text_is_that_texts_error(translator: Translator, call: Any) -> None:
    options = {"source_lang": "en", "target_lang": ["de", "nb", "fr"], "beam_size": 1}
    first, error, last = call(translator, ["Quit"] * 3, **options, on_error="return")
    assert (type(error), error.position, error.code) == (UnknownLanguageError, 1, "nb")
    assert [first.text, last.text] == [
        translator.translate("Quit", source_lang="en", target_lang=code, beam_size=1)
        for code in ("de", "fr")
    ]


@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
def test_a_bad_language_of_all_texts_is_the_calls_error(
    translator: Translator, name: str, on_error: Any
) -> None:
    languages: dict[str, Any] = {**EN_DE, name: "nb"}
    for call in (translator.translate_batch, translator.translate_iterable):
        with pytest.raises(UnknownLanguageError) as caught:
            call(["Quit", "Open"], **languages, on_error=on_error)
        assert caught.value.position is None


@CALLS
def test_by_default_the_first_is_raised(translator: Translator, call: Any) -> None:
    with pytest.raises(InputTooLongError, match=r"^texts\[1\]: ") as caught:
        call(translator, TEXTS, **GREEDY)
    assert caught.value.position == 1


def test_what_a_stream_read_before_an_error_comes_first(
    translator: Translator, expected: list[Translation]
) -> None:
    found: list[Translation] = []
    with pytest.raises(InputTooLongError):
        found.extend(translator.translate_iterable(TEXTS, **GREEDY))
    assert found == expected[:1]


@pytest.mark.parametrize("on_error", ["raise", "skip", "return"])
def test_languages_that_end_early_end_the_stream(translator: Translator, on_error: Any) -> None:
    languages: dict[str, Any] = {"source_lang": "en", "target_lang": iter(["de", "fr"])}
    found: list[Any] = []
    with pytest.raises(InvalidInputError, match="found 2 codes"):
        found.extend(
            translator.translate_iterable(["Quit"] * 4, **languages, beam_size=1, on_error=on_error)
        )
    assert len(found) == 2


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_a_readers_own_error_comes_after_what_was_read(
    translator: Translator, expected: list[Translation], on_error: Any
) -> None:
    """Such as a line of a file that cannot be decoded."""

    def texts() -> Iterator[str]:
        yield "Quit"
        raise LookupError("the reader's")

    found: list[Any] = []
    with pytest.raises(LookupError, match="the reader's"):
        found.extend(translator.translate_iterable(texts(), **GREEDY, on_error=on_error))
    assert found == expected[:1]


def test_a_time_limit_ends_a_stream_while_it_reads(
    translator: Translator, starts: list[tuple[int, int]]
) -> None:
    """What the handler of a signal raises is not kept until the texts before are translated."""

    def end(*_: object) -> None:
        raise LookupError("time limit")

    def texts() -> Iterator[str]:
        yield "Quit"
        os.kill(os.getpid(), signal.SIGALRM)
        yield "Open"

    before = signal.signal(signal.SIGALRM, end)
    try:
        with pytest.raises(LookupError, match="time limit"):
            list(translator.translate_iterable(texts(), **GREEDY))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert starts == []


def test_all_texts_may_be_bad(translator: Translator, starts: list[tuple[int, int]]) -> None:
    found = translator.translate_batch([LONG, LONG], **GREEDY, on_error="return")
    assert [type(error) for error in found] == [InputTooLongError] * 2
    assert translator.translate_batch([LONG, LONG], **GREEDY, on_error="skip") == []
    assert starts == []


@pytest.mark.parametrize("value", ["ignore", None, True, "Raise"])
def test_something_else_than_a_way_to_treat_errors(translator: Translator, value: Any) -> None:
    for call in (translator.translate_batch, translator.translate_iterable):
        with pytest.raises(InvalidInputError, match=r"on_error: expected .* found"):
            call(["Quit"], **EN_DE, on_error=value)


@pytest.mark.parametrize("value", [None, 5, {"de"}, {"de": 1}, b"de"])
def test_a_streams_language_of_another_kind(translator: Translator, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"target_lang: .*found {type(value).__name__}"):
        translator.translate_iterable(["Quit"], source_lang="en", target_lang=value)


def test_errors_are_of_one_tree(translator: Translator) -> None:
    found = translator.translate_batch(TEXTS, **GREEDY, on_error="return")
    assert [isinstance(one, M2M100Error) for one in found] == [n in BAD for n in range(len(TEXTS))]
