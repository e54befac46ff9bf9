"""Batches and streams: how texts are cut into them, and that it does not show."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from m2m100_onnx import (
    InvalidInputError,
    M2M100Error,
    Translation,
    Translator,
    UnknownLanguageError,
)
from translations import EN_DE, GREEDY, assert_same, long_text

# --- Batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beam_size", "tokens", "sizes"),
    [(1, 96, [3, 3, 3, 1]), (1, 127, [3, 3, 3, 1]), (1, 128, [4, 4, 2]), (3, 96, [1] * 10)],
)
def test_max_batch_tokens_cuts_batches(
    translator: Translator,
    starts: list[tuple[int, int]],
    beam_size: int,
    tokens: int,
    sizes: list[int],
) -> None:
    """A short source counts 32 tokens, since its row of logits costs what it costs."""
    texts = ["Open the file."] * 5 + ["Quit"] * 5
    translator.translate(texts, **EN_DE, beam_size=beam_size, max_batch_tokens=tokens, max_length=4)
    assert [size for size, _ in starts] == sizes
    # Longest first, so that memory runs out at once or not at all.
    lengths = [length for _, length in starts]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("limit", [40, 150, 400, 1000])
@pytest.mark.parametrize("beam_size", [1, 2])
def test_no_batch_is_larger_than_asked_for(
    translator: Translator, starts: list[tuple[int, int]], limit: int, beam_size: int
) -> None:
    lengths = [5, 90, 33, 8, 60, 12, 90, 7, 41, 120]
    texts = [long_text(translator, length) for length in lengths]
    translator.translate(texts, **EN_DE, beam_size=beam_size, max_batch_tokens=limit, max_length=4)
    assert sum(size for size, _ in starts) == len(texts)
    for size, length in starts:
        # One sentence is always taken, however long.
        assert size == 1 or size * length * beam_size <= limit
    assert max(length for _, length in starts) == 120


def test_result_does_not_depend_on_the_batch(
    translator: Translator, sentences: list[str], starts: list[tuple[int, int]]
) -> None:
    options = {**EN_DE, "beam_size": 2, "num_hypotheses": 2}
    expected = [translator.translate_batch([text], **options)[0] for text in sentences]
    del starts[:]
    whole = translator.translate_batch(sentences, **options, max_batch_tokens=1 << 20)
    assert_same(whole, expected)
    assert [size for size, _ in starts] == [40]
    order = random.Random(4).sample(range(40), 40)
    shuffled = [sentences[i] for i in order]
    found = translator.translate_batch(shuffled, **options, max_batch_tokens=500)
    assert_same(found, [expected[i] for i in order])
    assert len(starts) > 5


def test_many_threads_share_a_translator(translator: Translator, sentences: list[str]) -> None:
    texts = sentences[:16]
    options = {**EN_DE, "beam_size": 2, "max_length": 12}
    expected = translator.translate_batch(texts, **options)

    def translate(number: int) -> list[Translation]:
        # Each thread has the texts in an order of its own, and two at a time.
        turned = texts[2 * number :] + texts[: 2 * number]
        found: list[Translation] = []
        for start in range(0, len(turned), 2):
            found += translator.translate_batch(turned[start : start + 2], **options)
        return found[len(texts) - 2 * number :] + found[: len(texts) - 2 * number]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(translate, range(8)):
            assert_same(found, expected)


# --- Streams -------------------------------------------------------------------------------------


class Endless:
    """Texts without end, and how many were read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.read = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in itertools.cycle(self.texts):
            self.read += 1
            yield text


def test_stream_reads_ahead_a_constant_number(translator: Translator, sentences: list[str]) -> None:
    source = Endless(sentences)
    stream = translator.translate_iterable(source, **GREEDY, max_length=5, read_ahead=7)
    assert source.read == 0
    for number in range(1, 30):
        next(stream)
        assert source.read == -(-number // 7) * 7


def test_stream_reads_nothing_before_it_is_asked(translator: Translator) -> None:
    source = Endless(["Quit"])
    stream = translator.translate_iterable(source, **GREEDY)
    assert source.read == 0
    first = next(stream)
    read = source.read
    assert 2 <= read <= 4096
    assert next(stream) == first
    assert source.read == read


@pytest.mark.parametrize("read_ahead", [1, 4, 13, 100])
def test_stream_equals_batch(translator: Translator, sentences: list[str], read_ahead: int) -> None:
    texts = [*sentences[:6], "", *sentences[6:12]]
    stream = translator.translate_iterable(iter(texts), **GREEDY, read_ahead=read_ahead)
    assert_same(list(stream), translator.translate_batch(texts, **GREEDY))


def test_stream_of_languages(translator: Translator) -> None:
    texts = ["Open the file.", "Die Datei wurde nicht gefunden.", "Quit"]
    sources, targets = ["en", "de", "en"], ["fr", "en", "zh"]
    expected = translator.translate_batch(texts, source_lang=sources, target_lang=targets)
    for read_ahead in (1, 2, 10):
        found = translator.translate_iterable(
            iter(texts),
            source_lang=iter(sources),
            # A stream of languages may be endless, or longer than the texts.
            target_lang=itertools.cycle(targets),
            read_ahead=read_ahead,
        )
        assert_same(list(found), expected)


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
@pytest.mark.parametrize("read_ahead", [1, 3, 10])
def test_stream_of_languages_that_ends_early(
    translator: Translator, name: str, read_ahead: int
) -> None:
    """The texts that are left must not vanish."""
    languages: dict[str, Any] = {**GREEDY, name: iter([GREEDY[name]] * 2)}
    stream = translator.translate_iterable(
        ["Quit"] * 4, **languages, max_length=4, read_ahead=read_ahead
    )
    with pytest.raises(InvalidInputError, match=rf"{name}: .*2"):
        list(stream)


def test_empty_stream(translator: Translator) -> None:
    assert list(translator.translate_iterable([], **EN_DE)) == []
    assert (
        list(translator.translate_iterable(iter(["", " "]), **EN_DE))
        == [Translation("", 0.0, (), ())] * 2
    )


@pytest.mark.parametrize("read_ahead", [0, -1, 2.5, "2", None, True, 10**20])
def test_read_ahead_out_of_range(translator: Translator, read_ahead: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"read_ahead.*{read_ahead}"):
        translator.translate_iterable(["Quit"], **EN_DE, read_ahead=read_ahead)


def test_stream_names_the_place_of_an_error(translator: Translator) -> None:
    """Counted from the stream's beginning, not from what was read last."""
    texts: list[Any] = ["Quit", "", "Open", "Close", None]
    stream = translator.translate_iterable(texts, **GREEDY, max_length=4, read_ahead=2)
    for _ in range(4):
        next(stream)
    with pytest.raises(InvalidInputError, match=r"texts\[4\]: expected a str, found NoneType"):
        next(stream)


@pytest.mark.parametrize("read_ahead", [1, 3, 8, 100])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "expected a str, found NoneType"),
        ("\ud800", "valid Unicode, found the lone surrogate"),
        ("too long", "256"),
    ],
)
def test_stream_yields_what_came_before_an_error(
    translator: Translator, read_ahead: int, bad: Any, message: str
) -> None:
    texts: list[Any] = ["Quit", "", "Open the file.", "Close", "Save", "Quit", bad, "Quit"]
    if bad == "too long":
        texts[6] = long_text(translator, 300)
    expected = translator.translate_batch(texts[:6], **GREEDY)
    found: list[Translation] = []
    stream = translator.translate_iterable(texts, **GREEDY, read_ahead=read_ahead)
    with pytest.raises(M2M100Error, match=message) as caught:
        found.extend(stream)
    assert found == expected
    assert caught.value.position == 6
    assert str(caught.value) == f"texts[6]: {caught.value.message}"
    with pytest.raises(M2M100Error, match=r"texts\[6\]"):
        translator.translate_batch(texts, **GREEDY)


def test_stream_names_the_text_of_an_unknown_language(translator: Translator) -> None:
    languages = ["de", "fr", "xx"]
    found: list[Translation] = []
    stream = translator.translate_iterable(["Quit"] * 3, source_lang="en", target_lang=languages)
    with pytest.raises(UnknownLanguageError, match=r"texts\[2\]: unknown language 'xx'") as caught:
        found.extend(stream)
    assert len(found) == 2
    assert caught.value.position == 2


def test_a_single_text_needs_no_number(translator: Translator) -> None:
    with pytest.raises(UnknownLanguageError) as caught:
        translator.translate("Quit", source_lang="en", target_lang="xx")
    assert caught.value.position is None


def test_an_error_of_the_source_passes_through(translator: Translator) -> None:
    def broken() -> Iterator[str]:
        yield "Quit"
        raise KeyError("the source is gone")

    with pytest.raises(KeyError, match="the source is gone"):
        list(translator.translate_iterable(broken(), **EN_DE))


def test_options_of_a_stream_are_checked_at_once(translator: Translator) -> None:
    source = Endless(["Quit"])
    with pytest.raises(InvalidInputError, match="beam_size"):
        translator.translate_iterable(source, **EN_DE, beam_size=0)
    assert source.read == 0
