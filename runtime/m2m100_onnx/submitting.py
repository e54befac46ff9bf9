"""Translations that are waited for later: many callers share batches in one queue.

Turns texts into a request of the queue. Knows no threads and no turns; `engine/scheduler.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, overload

from m2m100_onnx._typing import Unpack
from m2m100_onnx.calls import Call, Languages, Worker
from m2m100_onnx.engine.batches import Sentence, places
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.requests import Request, Ticket
from m2m100_onnx.engine.running import Running
from m2m100_onnx.engine.scheduler import Scheduler
from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.inputs import as_texts, check_texts, located
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import Settings
from m2m100_onnx.rerank import TranslateArguments
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.targets import unmet
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import EMPTY, Translation

__all__ = ["AFTERWARDS", "Submitting", "queue_of"]

AFTERWARDS = ("alignments", "replace_unknowns", "rerank")
"""What needs another run of the model when a translation is there."""


class Submitting:
    """The part of a translator that queues texts."""

    tokenizer: Tokenizer
    queue: Scheduler
    _gate: Gate
    _worker: Worker

    @overload
    def submit(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        priority: int = 0,
        cancellation: Cancellation | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Future[Translation]: ...

    @overload
    def submit(
        self,
        text: Sequence[str],
        *,
        source_lang: Languages,
        target_lang: Languages,
        priority: int = 0,
        cancellation: Cancellation | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Future[list[Translation]]: ...

    def submit(
        self,
        text: str | Sequence[str],
        *,
        source_lang: Languages,
        target_lang: Languages,
        priority: int = 0,
        cancellation: Cancellation | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Future[Translation] | Future[list[Translation]]:
        """Queues texts, and returns the future of their translations.

        They are those of `translate_batch` to the last bit, whatever texts of other callers share a
        batch with them. Cancelling the future ends the work within a step. Errors of the call are
        raised here, those of the search by the future.

        Args:
            text: one text, best a sentence, or several.
            source_lang: their language, or one for each.
            target_lang: the language to translate into, or one for each.
            priority: larger numbers go first; among equal ones requests take turns.
            cancellation: lets another thread end the call.
            stats: takes counts and times when the translations are there.
            **options: see `translate`; `timeout` counts from here, the wait included. `rerank`,
                `alignments` and `replace_unknowns` are not taken.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, or an option is out of range.
            OverloadedError: too many sentences wait.
            ClosedError: the translator is closed.
        """
        single, texts = isinstance(text, str), as_texts(text, options)
        check_texts(texts)
        call = self._queued_call(options, cancellation, priority, stats)
        call.targets.check(len(texts))
        began, sentences = time.perf_counter(), []
        rows = self._worker.rows(texts, source_lang, target_lang, call)
        for position, row in enumerate(rows):
            with located(None if single else position):
                sentences.append(self._worker.sentence(position, row, call))
        if stats is not None:
            stats.encode_seconds += time.perf_counter() - began
            stats.characters += sum(map(len, texts))
        has_text = self.tokenizer.has_text
        wanted = [sentence for sentence in sentences if has_text(sentence.source)]
        request = Request(wanted, call.settings, call.stop, priority)
        result: Future[Any] = Future()
        result.add_done_callback(lambda done: done.cancelled() and request.future.cancel())
        done = partial(_hand_over, result, request, sentences, stats, single)
        self.queue.submit(request).add_done_callback(done)
        return result

    async def translate_async(
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        priority: int = 0,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateArguments],
    ) -> str:
        """Translates a text without blocking the event loop; cancelling the task ends the work.

        Arguments and errors are those of `submit`.
        """
        import asyncio  # It takes 30 ms and 3 MB, which few need.

        future = self.submit(
            text,
            source_lang=source_lang,
            target_lang=target_lang,
            priority=priority,
            cancellation=cancellation,
            **options,
        )
        return (await asyncio.wrap_future(future)).text

    def _queued_call(
        self,
        options: TranslateArguments,
        cancellation: Cancellation | None,
        priority: object,
        stats: Stats | None,
    ) -> Call:
        """Returns a call of the queue, with its arguments checked."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidInputError(f"priority: expected an int, found {priority!r}")
        call = self._worker.begin(options, cancellation, "raise", None, stats)
        search = call.settings.search
        refused = [name for name in AFTERWARDS if getattr(search, name, False)]
        if call.rerank is not None:
            refused.append("rerank")
        if refused:
            raise InvalidInputError(
                f"{refused[0]}: expected none for the queue, which translates alone, found one; "
                "translate_batch() takes it"
            )
        return call


def queue_of(generator: Generator[Model], worker: Worker, gate: Gate) -> Scheduler:
    """Returns the queue of a translator; it refers to the parts, so that no cycle keeps them."""
    model = generator.model

    def room(sentence: Sentence, settings: Settings) -> int:
        longest = settings.search.max_length
        most = min(longest, sentence.limit or longest)
        return places(sentence, settings, model.cache_bytes, most)

    def finish(ticket: Ticket, found: list[Hypothesis]) -> Translation:
        if not found:
            error = unmet()
            error.position = ticket.sentence.position
            raise error
        return worker.decode(found)

    return Scheduler(
        partial(_GatedRunning, model, gate),
        room,
        finish,
        workers=model.threads,
        least_rows=model.rows_a_part,
    )


class _GatedRunning(Running[Ticket]):
    """A running batch that a closed translator refuses, and waits for while it takes a step."""

    def __init__(self, model: Model, gate: Gate) -> None:
        super().__init__(model)
        self._gate = gate

    def join(self, joiners: Sequence[tuple[Ticket, Sentence, Any]], *, serial: bool) -> None:
        with self._gate.call():
            super().join(joiners, serial=serial)

    def step(self, *, serial: bool) -> list[tuple[Ticket, list[Hypothesis]]]:
        with self._gate.call():
            return super().step(serial=serial)


def _hand_over(
    result: Future[Any],
    request: Request,
    sentences: Sequence[Sentence],
    stats: Stats | None,
    single: bool,
    found: Future[dict[int, Translation]],
) -> None:
    """Gives a request's outcome to the future of its caller, unless that was cancelled."""
    if not result.set_running_or_notify_cancel():
        return
    if (error := found.exception()) is not None:
        if single and isinstance(error, M2M100Error):
            error.position = None
        result.set_exception(error)
    else:
        translations = [found.result().get(one.position, EMPTY) for one in sentences]
        if stats is not None:
            stats.texts += len(translations)
            stats.queue_seconds += request.waited or 0.0
            stats.search_seconds += request.seconds - (request.waited or 0.0)
            stats.source_tokens += sum(len(one.source) for one in sentences)
            stats.target_tokens += sum(len(one.tokens) for one in translations)
        result.set_result(translations[0] if single else translations)
