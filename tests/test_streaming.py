"""Streams: pieces joined are the translation, come as early as they can, and end when they must."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import (
    Cancellation,
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InvalidInputError,
    Translator,
    UnknownLanguageError,
)
from manifests import accept
from tokenization import rewrite

PAIRS = (("en", "de"), ("de", "fr"), ("fr", "es"), ("es", "ru"), ("ru", "zh"), ("zh", "en"))
EN_DE: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
TEXT = "The package could not be installed because the disk is full."
WAYS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 5},
    {"beam_size": 4, "early_stopping": False, "length_penalty": 2.0},
    {"do_sample": True, "seed": 7, "temperature": 1.3},
    {"beam_size": 2, "max_length": 7},
)


@pytest.fixture(scope="module")
def translator(demo_bundle: Path) -> Translator:
    return Translator(demo_bundle)


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pieces_joined_are_the_translation(
    translator: Translator, repository: Path, source: str, target: str, options: dict[str, Any]
) -> None:
    lines = (repository / "demo" / "heldout" / f"dev.{source}").read_text().splitlines()[:12]
    named: dict[str, Any] = {"source_lang": source, "target_lang": target, **options}
    for line, wanted in zip(lines, translator.translate(lines, **named), strict=True):
        pieces = list(translator.stream(line, **named))
        assert "".join(pieces) == wanted
        assert all(pieces)


def test_greedy_pieces_come_token_by_token(translator: Translator) -> None:
    (found,) = translator.translate_batch([TEXT], **EN_DE, beam_size=1)
    pieces = list(translator.stream(TEXT, **EN_DE, beam_size=1))
    words = found.tokens[2:-1]
    texts = [translator.tokenizer.decode(found.tokens[: 2 + n + 1]) for n in range(len(words))]
    # A token that adds nothing but a blank has no piece of its own.
    assert len(pieces) == len(set(texts))
    assert len(pieces) > 8


def test_beams_settle_before_the_end(translator: Translator) -> None:
    text = f"{TEXT[:-1]}, and the user has no permission to write to it."
    assert len(list(translator.stream(text, **EN_DE, beam_size=5))) > 2


def test_blanks_that_are_cleaned_up(demo_bundle: Path, tmp_path: Path) -> None:
    """A rule may join a word with what comes later: "it ' s" becomes "it's"."""
    cleaning = tmp_path / "bundle"
    shutil.copytree(demo_bundle, cleaning)
    rewrite(cleaning / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    accept(cleaning)
    translator = Translator(cleaning)
    for text in (TEXT, "It's the user's file.", "Wait , please !"):
        for beams in (1, 3):
            options: dict[str, Any] = {"source_lang": "de", "target_lang": "en", "beam_size": beams}
            wanted = translator.translate(text, **options)
            assert "".join(translator.stream(text, **options)) == wanted


def test_a_text_without_words(translator: Translator) -> None:
    assert list(translator.stream("", **EN_DE)) == []


def test_arguments_are_refused_before_the_first_piece(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match=r"expected 1 for a stream.*found 2"):
        translator.stream(TEXT, **EN_DE, num_hypotheses=2)
    with pytest.raises(UnknownLanguageError):
        translator.stream(TEXT, source_lang="en", target_lang="xx")
    with pytest.raises(TypeError, match="use beam_size"):
        translator.stream(TEXT, **EN_DE, num_beams=2)
    with pytest.raises(InvalidInputError, match="expected a str, found list"):
        translator.stream([TEXT], **EN_DE)  # type: ignore[arg-type]


def test_a_stream_is_cancelled_between_two_pieces(translator: Translator) -> None:
    cancellation = Cancellation()
    stream = translator.stream(TEXT, **EN_DE, beam_size=1, cancellation=cancellation)
    first = next(stream)
    assert translator.translate(TEXT, **EN_DE, beam_size=1).startswith(first)
    cancellation.cancel()
    with pytest.raises(Cancelled):
        list(stream)


def test_a_stream_ends_at_its_deadline(translator: Translator) -> None:
    stream = translator.stream(TEXT, **EN_DE, min_length=190, beam_size=5, timeout=0.02)
    with pytest.raises(DeadlineExceeded):
        list(stream)


def test_a_stream_that_is_given_up_holds_nothing(demo_bundle: Path) -> None:
    translator = Translator(demo_bundle)
    stream = translator.stream(TEXT, **EN_DE, beam_size=1)
    next(stream)
    # It does not count as a call while nothing is computed.
    assert not translator.generator._running
    del stream
    translator.close()
    with pytest.raises(ClosedError):
        translator.stream(TEXT, **EN_DE)


def test_asynchronous_streams(translator: Translator) -> None:
    async def collect(text: str) -> str:
        return "".join([p async for p in translator.astream(text, **EN_DE, beam_size=2)])

    async def run() -> list[str]:
        return await asyncio.gather(*map(collect, (TEXT, "Save a copy.", "Quit")))

    wanted = translator.translate([TEXT, "Save a copy.", "Quit"], **EN_DE, beam_size=2)
    assert asyncio.run(run()) == wanted


def test_a_task_that_is_cancelled_ends_its_search(translator: Translator) -> None:
    async def run() -> None:
        async def endless() -> None:
            options: dict[str, Any] = {**EN_DE, "min_length": 195, "beam_size": 5}
            async for _ in translator.astream(TEXT, **options):
                pass

        task = asyncio.create_task(endless())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not translator.generator._running

    asyncio.run(run())
