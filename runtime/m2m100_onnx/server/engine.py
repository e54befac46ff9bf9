"""Carries calls out on opened bundles: the one file that knows how calls share the processor.

Texts go to the queue of their bundle, where those of many clients share batches; other calls take a
thread of a bounded pool. Bundles can be opened anew while calls run: what has begun ends on the
translator with which it began, which is closed after the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError, M2M100Error, OverloadedError
from m2m100_onnx.pool import MemoryBudget
from m2m100_onnx.server.metrics import Metrics
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.tracing import Traces
from m2m100_onnx.translation import Translation
from m2m100_onnx.translator import Translator

__all__ = ["Engine", "Served", "open_all"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_LONG = 4000
"""Characters from which on a request becomes tokens in a thread of its own."""
_T = TypeVar("_T")


@dataclass(eq=False)
class Served:
    """An opened bundle.

    Attributes:
        name: what clients call it.
        translator: translates with it.
        aligns: comes to say whether it tells which words stand for which; None until one asks.
        users: calls that use it, or wait to.
        retired: whether a newer one has taken its place.
    """

    name: str
    translator: Translator
    aligns: asyncio.Future[bool] | None = field(default=None, init=False)
    users: int = field(default=0, init=False)
    retired: bool = field(default=False, init=False)


def open_all(
    bundles: Sequence[str], arguments: Mapping[str, Any], *, graphs: bool = True
) -> tuple[Served, ...]:
    """Opens bundles, each by its folder's name.

    Args:
        bundles: their folders, or names on the hub.
        arguments: how a `Translator` is opened.
        graphs: whether their graphs are opened too; else nothing is that a fork would not keep.

    Raises:
        InvalidInputError: two have the same name.
        M2M100Error: one cannot be opened.
    """
    names = [Path(bundle).name for bundle in bundles]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError(f"model: expected folders of different names, found {name!r}")
    found: list[Served] = []
    try:
        for name, bundle in zip(names, bundles, strict=True):
            translator = Translator(bundle, **arguments)
            if graphs:
                translator.model.load()
            found.append(Served(name, translator))
    except BaseException:
        for served in found:
            served.translator.close()
        raise
    return tuple(found)


class Engine:
    """The opened bundles, and the threads in which calls run.

    Attributes:
        served: the bundles; calls that name none take the first that has their languages.
        closing: whether the server ends, so that it is not ready for more.
    """

    def __init__(
        self,
        open_bundles: Callable[[], tuple[Served, ...]],
        metrics: Metrics,
        traces: Traces,
        *,
        threads: int,
        most_calls: int,
        memory: int | None = None,
    ) -> None:
        """Opens the bundles.

        Args:
            open_bundles: opens them; a reload calls it again.
            metrics: takes what calls did.
            traces: covers calls with spans.
            threads: calls beside translations that run at the same time.
            most_calls: calls that run or wait; others are refused.
            memory: bytes of weights that are open at the same time; None for no limit.

        Raises:
            M2M100Error: a bundle cannot be opened, or is larger than `memory`.
        """
        self._budget = MemoryBudget(memory)
        self.served, self.closing = open_bundles(), False
        self._open, self._metrics, self._most = open_bundles, metrics, most_calls
        self._traces = traces
        self._threads, self._calls, self._pooled = threads, 0, 0
        self._take_up()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="m2m100-call")
        self._reloading = asyncio.Lock()
        self._closings: set[asyncio.Future[None]] = set()

    async def translate(
        self,
        served: Served,
        texts: Sequence[str],
        source_lang: str,
        target_lang: str,
        options: Mapping[str, Any],
        timeout: float | None,
        cancellation: Cancellation,
    ) -> list[Translation]:
        """Translates texts as `Translator.translate_batch` does.

        Args:
            served: the bundle.
            texts: the texts.
            source_lang: their language.
            target_lang: the language to translate into.
            options: options of the call.
            timeout: seconds from now, the time in which the call waits included.
            cancellation: ends the call.

        Raises:
            M2M100Error: those of `translate_batch`.
            Refused: too many calls wait.
        """
        stats = Stats()
        began = time.monotonic()
        arguments: dict[str, Any] = {"source_lang": source_lang, "target_lang": target_lang}
        arguments |= {"stats": stats, "cancellation": cancellation, **options}

        def left() -> float | None:
            return None if timeout is None else max(0.0, timeout - (time.monotonic() - began))

        def submit() -> Future[list[Translation]]:
            return served.translator.submit(texts, **{**arguments, "timeout": left()})

        with self._counted("translate", served, source_lang, target_lang, stats):
            return await self._submitted(served, submit, sum(map(len, texts)))

    @contextlib.contextmanager
    def _counted(
        self, name: str, served: Served, source_lang: str, target_lang: str, stats: Stats
    ) -> Iterator[None]:
        """Counts a call and covers it with a span, whatever its end."""
        try:
            with self._traces.call(name, served.name, source_lang, target_lang, stats):
                yield
        finally:
            self._metrics.called(stats)

    async def _submitted(
        self, served: Served, submit: Callable[[], Future[_T]], characters: int
    ) -> _T:
        """Waits for what the queue of a bundle does; a task that is cancelled cancels it."""
        self._begin(served)
        try:
            # To cut a long text into tokens would hold up other clients.
            at_once = characters < _LONG
            future = submit() if at_once else await asyncio.to_thread(submit)
            return await asyncio.wrap_future(future)
        except OverloadedError as error:
            self._metrics.refused.inc()
            message = "the server is busy; try again"
            raise Refused("busy", message, max(1.0, error.retry_after)) from None
        finally:
            self._end(served)

    async def run(self, served: Served, work: Callable[[], _T], cancellation: Cancellation) -> _T:
        """Runs work in a thread; a task that is cancelled cancels the work.

        Raises:
            Refused: too many calls wait.
        """
        self._begin(served)
        self._pooled += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)

        def ended(done: asyncio.Future[_T]) -> None:
            self._pooled -= 1
            self._end(served)
            if not done.cancelled():
                done.exception()  # Nobody else may ask for it.

        future.add_done_callback(ended)
        try:
            # The thread goes on after the task is cancelled, and uses the bundle meanwhile.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    async def stream(
        self,
        served: Served,
        text: str,
        source_lang: str,
        target_lang: str,
        options: Mapping[str, Any],
        timeout: float | None,
        cancellation: Cancellation,
    ) -> AsyncIterator[str]:
        """Yields a translation in pieces as `Translator.astream` does; arguments as `translate`.

        Raises:
            M2M100Error: those of `astream`.
            Refused: too many calls wait.
        """
        self._begin(served)
        stats = Stats()
        try:
            with self._counted("stream", served, source_lang, target_lang, stats):
                pieces = served.translator.astream(
                    text,
                    source_lang=source_lang,
                    target_lang=target_lang,
                    cancellation=cancellation,
                    stats=stats,
                    **{**options, "timeout": timeout},
                )
                # Its thread is in the middle of a step where this stream is given up.
                async with contextlib.aclosing(cast("AsyncGenerator[str]", pieces)):
                    async for piece in pieces:
                        yield piece
        finally:
            self._end(served)

    @contextlib.contextmanager
    def keep(self, served: Served) -> Iterator[None]:
        """Keeps a bundle open between calls, though a newer one may take its place."""
        served.users += 1
        try:
            yield
        finally:
            served.users -= 1
            self._close_unused(served)

    def _begin(self, served: Served) -> None:
        if self._calls >= self._most:
            self._metrics.refused.inc()
            raise Refused("busy", "the server is busy; try again", 1.0)
        self._calls += 1
        served.users += 1
        self._budget.use(served.translator)
        self._show()

    def _end(self, served: Served) -> None:
        self._calls -= 1
        served.users -= 1
        self._show()
        self._close_unused(served)

    def _take_up(self) -> None:
        """Counts steps of the bundles that were opened, and keeps them within the budget."""
        self._budget.check(served.translator for served in self.served)
        for served in self.served:
            served.translator.queue.on_step = self._metrics.stepped
            self._budget.use(served.translator)

    def _show(self) -> None:
        queued = sum(served.translator.queue.waiting for served in self.served)
        self._metrics.running.set(self._calls)
        self._metrics.waiting.set(queued + max(0, self._pooled - self._threads))

    async def reload(self) -> bool:
        """Opens the bundles anew and switches to them; returns whether it did.

        Where one cannot be opened, all stay as they are, and the log says why.
        """
        async with self._reloading:
            try:
                fresh = await asyncio.to_thread(self._open)
            except (M2M100Error, OSError) as error:
                self._metrics.reloads.labels("failed").inc()
                _LOGGER.error("the bundles stay as they were: %s", error)
                return False
            old, self.served = self.served, fresh
            self._take_up()
            for served in old:
                served.retired = True
                self._close_unused(served)
            self._metrics.reloads.labels("done").inc()
            _LOGGER.info("opened the bundles anew")
            return True

    def _close_unused(self, served: Served) -> None:
        if served.retired and not served.users:
            self._budget.forget(served.translator)
            loop = asyncio.get_running_loop()
            closing = loop.run_in_executor(None, served.translator.close)
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)

    async def close(self) -> None:
        """Closes the bundles after the calls that run."""
        self.closing = True
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.gather(*self._closings)
        for served in self.served:
            await asyncio.to_thread(served.translator.close)
