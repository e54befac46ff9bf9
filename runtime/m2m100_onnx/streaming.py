"""Translations that come piece by piece, as their words settle.

Knows tokens that are settled and the text that they make; leaves the search to the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar, cast

from m2m100_onnx._typing import Unpack
from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.calls import Call, Worker
from m2m100_onnx.engine.batches import Batch, Sentence
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.inputs import Prefix, Row
from m2m100_onnx.model.model import Model
from m2m100_onnx.rerank import TranslateArguments
from m2m100_onnx.targets import unmet
from m2m100_onnx.text.tokenizer import Tokenizer

__all__ = ["Streaming"]

_T = TypeVar("_T")


class Streaming:
    """The methods of a `Translator` that yield a translation in pieces."""

    bundle: Bundle
    tokenizer: Tokenizer
    generator: Generator[Model]
    _gate: Gate
    _worker: Worker

    def stream(
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        cancellation: Cancellation | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Iterator[str]:
        """Translates a text; yields pieces of the translation as soon as they are settled.

        A piece is settled when no later step can change it. With one beam, and when sampling, that
        is so for each token; with several beams, for what all of them share. The pieces joined are
        what `translate` returns.

        Args:
            text: the text.
            source_lang: its language.
            target_lang: the language to translate into.
            cancellation: lets another thread end the stream.
            stats: takes counts and times when the stream ends; what its caller does between two
                pieces is not in them.
            **options: those of `translate`; `num_hypotheses` is 1.

        Raises:
            M2M100Error: those of `translate`; what is wrong with an argument is raised at once.
        """
        call = self._worker.begin(options, cancellation, "raise", None, stats)
        if call.settings.search.num_hypotheses != 1 or call.rerank is not None:
            raise InvalidInputError(
                "num_hypotheses: expected 1 for a stream, which is one translation, found "
                f"{call.settings.search.num_hypotheses}"
            )
        for name in ("alignments", "replace_unknowns"):
            if getattr(call.settings.search, name):
                raise InvalidInputError(
                    f"{name}: expected False for a stream, whose words are not all there when the "
                    "first are, found True"
                )
        if call.targets.own_terms is not None:
            kind = type(call.targets.own_terms).__name__
            raise InvalidInputError(f"terms: expected a mapping for a stream, found {kind}")
        prefix = cast("Prefix", call.targets.prefixes)
        row = Row(text, source_lang, target_lang, prefix)
        began = time.perf_counter()
        sentence = self._worker.sentence(0, row, call)
        done = Stats(characters=len(text), encode_seconds=time.perf_counter() - began)
        return self._recorded(self._pieces(sentence, call, done), call, done)

    async def astream(
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        cancellation: Cancellation | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> AsyncIterator[str]:
        """Yields what `stream` yields, and computes in another thread.

        The search ends within a step if the task is cancelled or the iteration is given up.
        Arguments and errors are those of `stream`.
        """
        import asyncio  # It takes 30 ms and 3 MB, which few need.

        own = cancellation or Cancellation()
        pieces = self.stream(
            text,
            source_lang=source_lang,
            target_lang=target_lang,
            cancellation=own,
            stats=stats,
            **options,
        )
        running = threading.Lock()

        def following() -> str | None:
            with running:
                return next(pieces, None)

        def finish() -> None:
            with running:  # A cancelled task leaves its thread in the middle of a step.
                pieces.close()  # type: ignore[attr-defined] # It is a generator.

        try:
            while (piece := await asyncio.to_thread(following)) is not None:
                yield piece
        finally:
            if cancellation is None:
                own.cancel()
            await asyncio.shield(asyncio.to_thread(finish))

    def _recorded(self, pieces: Iterator[str], call: Call, done: Stats) -> Iterator[str]:
        """Yields the pieces; whatever ends them, the caller's numbers have what was done."""
        try:
            yield from pieces
            done.texts = 1
        finally:
            call.record(done)

    def _pieces(self, sentence: Sentence, call: Call, done: Stats) -> Iterator[str]:
        if not self.tokenizer.has_text(sentence.source):
            return
        batch = Batch.of([sentence], self.bundle.config.pad_token_id)
        given, ended = "", False
        done.batches, done.source_tokens = 1, len(sentence.source)
        with self._gate.call():
            steps = self.generator.stream(batch, call.settings.search, call.stop)
            for tokens in _timed(steps, done):
                began = time.perf_counter()
                done.target_tokens = len(tokens)
                ended = tokens[-1] == self.bundle.config.eos_token_id
                text = self.tokenizer.decode(tokens)
                settled = text if ended else self.tokenizer.settled(text)
                done.decode_seconds += time.perf_counter() - began
                if len(settled) > len(given):
                    yield settled[len(given) :]
                    given = settled
            if call.stop.reached and not ended:
                raise call.stop.error({})
            if sentence.terms is not None and sentence.terms.ways(tuple(tokens))[0]:
                raise unmet()
            if not ended:  # `max_length` cut it, so that its last word was not settled before.
                yield from [rest] if (rest := text[len(given) :]) else []


def _timed(steps: Iterator[_T], done: Stats) -> Iterator[_T]:
    """Yields what the search yields, and counts the time in which it does."""
    ended = object()
    while True:
        began = time.perf_counter()
        step = next(steps, ended)
        done.search_seconds += time.perf_counter() - began
        if step is ended:
            return
        yield cast("_T", step)
