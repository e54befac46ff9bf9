"""Translations that are waited for later: many callers share batches in one queue.

Turns texts into a request of the queue. Knows no threads and no turns; `engine/scheduler.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

from m2m100_onnx._typing import Unpack
from m2m100_onnx.afterwards import has_afterwards
from m2m100_onnx.calls import Call, Languages, Worker
from m2m100_onnx.engine.aside import Aside
from m2m100_onnx.engine.batches import Sentence, places
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.requests import Request, Ticket
from m2m100_onnx.engine.running import Running
from m2m100_onnx.engine.scheduler import Scheduler
from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.inputs import Row, as_texts, check_texts, located
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import Settings
from m2m100_onnx.rerank import TranslateArguments
from m2m100_onnx.search.hypothesis import Hypothesis
from m2m100_onnx.targets import unmet
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import EMPTY, Translation

__all__ = ["Submitting", "queue_of"]


class Submitting:
    """The part of a translator that queues texts."""

    tokenizer: Tokenizer
    queue: Scheduler
    _worker: Worker
    _aside: Aside

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
            **options: see `translate`; `timeout` counts from here, the wait included.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, or an option is out of range.
            OverloadedError: too many sentences wait.
            ClosedError: the translator is closed.
        """
        single, texts = isinstance(text, str), as_texts(text, options)
        check_texts(texts)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidInputError(f"priority: expected an int, found {priority!r}")
        own = Cancellation() if cancellation is None else cancellation
        call = self._worker.begin(options, own, "raise", None, stats)
        call.targets.check(len(texts))
        began, pairs = time.perf_counter(), []
        rows = self._worker.rows(texts, source_lang, target_lang, call)
        for position, row in enumerate(rows):
            with located(None if single else position):
                pairs.append((self._worker.sentence(position, row, call), row))
        if stats is not None:
            stats.encode_seconds += time.perf_counter() - began
            stats.characters += sum(map(len, texts))
        # A cancellation of the caller's may be that of other calls, too.
        submitted = _Submitted(call, pairs, single, own if cancellation is None else None)
        submitted.queue(self.queue, self._worker, self._aside, priority)
        return submitted.result

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


@dataclass(eq=False)
class _Submitted:
    """What one caller waits for: a search, what follows it, and the future of the outcome.

    Attributes:
        call: options, deadline and cancellation.
        texts: what is translated, as tokens and as the caller gave it.
        single: whether the caller gave one text and no list.
        cancellation: ends what follows the search when the future is cancelled; None where that
            would end other calls.
        result: the caller's future.
    """

    call: Call
    texts: Sequence[tuple[Sentence, Row]]
    single: bool
    cancellation: Cancellation | None
    result: Future[Any] = field(default_factory=Future)

    def queue(self, queue: Scheduler, worker: Worker, aside: Aside, priority: int) -> None:
        """Submits it to a queue."""
        sentences = [sentence for sentence, _ in self.texts]
        wanted = [one for one in sentences if worker.has_text(one)]
        request = Request(wanted, self.call.settings, self.call.stop, priority)

        def cancel(done: Future[Any]) -> None:
            if done.cancelled():
                request.future.cancel()
                if self.cancellation is not None:
                    self.cancellation.cancel()

        def searched(found: Future[dict[int, Translation]]) -> None:
            if found.cancelled() or (error := found.exception()) is not None:
                self._fail(CancelledError() if found.cancelled() else error)
                return
            results = {one.position: found.result().get(one.position, EMPTY) for one in sentences}
            self._count(request, results)
            if has_afterwards(self.call.settings, self.call.rerank):
                aside.put(lambda: self._follow(worker, results))
            else:
                self._hand_over(results)

        self.result.add_done_callback(cancel)
        queue.submit(request).add_done_callback(searched)

    def _follow(self, worker: Worker, results: dict[int, Translation]) -> None:
        """Runs what follows the search."""
        if self.result.cancelled():
            self.result.set_running_or_notify_cancel()
            return
        try:
            results = worker.complete(self.texts, results, self.call)
            if len(results) < len(self.texts):
                raise self.call.stop.error(results)
        except BaseException as error:
            self._fail(error)
        else:
            self._hand_over(results)

    def _count(self, request: Request, results: Mapping[int, Translation]) -> None:
        stats = self.call.stats
        if stats is not None:
            stats.texts += len(results)
            stats.queue_seconds += request.waited or 0.0
            stats.search_seconds += request.seconds - (request.waited or 0.0)
            stats.source_tokens += sum(len(sentence.source) for sentence, _ in self.texts)
            stats.target_tokens += sum(len(one.tokens) for one in results.values())

    def _hand_over(self, results: Mapping[int, Translation]) -> None:
        """Gives the translations to the caller's future, unless that was cancelled."""
        if self.result.set_running_or_notify_cancel():
            found = [results[sentence.position] for sentence, _ in self.texts]
            self.result.set_result(found[0] if self.single else found)

    def _fail(self, error: BaseException | None) -> None:
        if self.result.set_running_or_notify_cancel():
            if self.single and isinstance(error, M2M100Error):
                error.position = None
            self.result.set_exception(error)
