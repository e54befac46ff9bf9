"""What all APIs share: the bundles, the limits, and the way from texts to translations.

Knows texts, languages and limits; knows no request's shape.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import BundleError, DeadlineExceeded, InvalidInputError, M2M100Error
from m2m100_onnx.server.detection import Detector
from m2m100_onnx.server.engine import Engine, Served
from m2m100_onnx.server.inline import is_cut, tagged
from m2m100_onnx.server.languages import choose
from m2m100_onnx.server.limits import Admission
from m2m100_onnx.server.markup import Markup, Run
from m2m100_onnx.server.metrics import Metrics
from m2m100_onnx.server.passages import Passage, cut, joined
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.results import Results
from m2m100_onnx.server.settings import Settings
from m2m100_onnx.server.tracing import Traces
from m2m100_onnx.translation import Translation
from m2m100_onnx.translator import Translator

__all__ = ["Job", "Service", "service_of", "while_connected"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_T = TypeVar("_T")
_FILE_STEP = 64
"""Sentences of a file that are one call, so that others get their turn between two."""


@dataclass
class Job:
    """Texts to translate, as a client asked for it.

    Attributes:
        texts: the texts.
        source_lang: their language, as the client writes it.
        target_lang: the language to translate into.
        model: the name of a bundle, None for any.
        options: options of the library.
        timeout: seconds that the client gives; the server's deadline counts too.
        is_file: whether the texts are those of a file, which has limits of its own.
        cancellation: ends the work.
    """

    texts: Sequence[str]
    source_lang: str
    target_lang: str
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    is_file: bool = False
    cancellation: Cancellation = field(default_factory=Cancellation)


@dataclass
class Service:
    """The parts that the APIs are built on.

    Attributes:
        engine: carries calls out.
        settings: what the operator has set.
        admission: lets requests in.
        metrics: counts.
        detector: detects languages.
        results: keeps translated files; None where files are not translated.
        traces: covers requests with spans.
    """

    engine: Engine
    settings: Settings
    admission: Admission
    metrics: Metrics
    detector: Detector
    results: Results | None
    traces: Traces

    def check_size(self, texts: Sequence[str]) -> None:
        """Refuses more texts or characters than the limits allow.

        Raises:
            Refused: it is too much.
        """
        limits = self.settings.limits
        _check(len(texts), limits.texts)
        _check(sum(map(len, texts)), limits.characters)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuses more beams or hypotheses than the limits allow.

        Raises:
            Refused: it is too much.
        """
        most = self.settings.limits.beams
        for name in ("beam_size", "num_hypotheses"):
            value = options.get(name)
            if isinstance(value, int) and value > most:
                raise Refused("bad_request", f"{name}: expected at most {most}, found {value}")

    def seconds(self, job: Job) -> float:
        """Returns the seconds that a job may take."""
        limits = self.settings.limits
        deadline = limits.file_deadline if job.is_file else limits.deadline
        return deadline if job.timeout is None else min(job.timeout, deadline)

    async def translate(self, job: Job) -> tuple[Served, list[Translation]]:
        """Translates the texts of a job as they are; returns the bundle too.

        Raises:
            M2M100Error: those of `Translator.translate_batch`.
            Refused: a limit is exceeded, or no bundle has the languages.
        """
        self.check_size(job.texts)
        self.check_options(job.options)
        return await self._call(job, job.texts, job.options)

    async def _call(
        self, job: Job, texts: Sequence[str], options: Mapping[str, Any]
    ) -> tuple[Served, list[Translation]]:
        served, source, target = choose(
            self.engine.served, job.source_lang, job.target_lang, job.model
        )
        ends, found = time.monotonic() + self.seconds(job), []
        step = _FILE_STEP if job.is_file else len(texts)
        for first in range(0, len(texts), step):
            part = texts[first : first + step]
            call = partial(self.engine.translate, served, part, source, target, options)
            try:
                found += await _turn(call, ends, job.cancellation, waits=first > 0)
            except M2M100Error as error:
                if error.position is not None:
                    error.position += first
                raise
        self.count(job.texts)
        self.log(texts, [translation.text for translation in found])
        return served, found

    def count(self, texts: Sequence[str]) -> None:
        """Counts the characters of texts."""
        self.metrics.received(sum(map(len, texts)))

    def log(self, texts: Sequence[str], translations: Sequence[str]) -> None:
        """Logs texts with their translations, where the operator wants that."""
        if self.settings.log_texts:
            facts = {"texts": list(texts), "translations": list(translations)}
            _LOGGER.info("translated", extra={"facts": facts})

    async def translate_passages(
        self, job: Job, *, hypotheses: int = 1, html: bool = False
    ) -> tuple[Served, list[list[str]]]:
        """Translates texts of any length, sentence by sentence; returns the bundle too.

        Args:
            job: the texts, and the options for their sentences.
            hypotheses: translations of each text, best first.
            html: whether the texts are HTML, whose markup is kept.

        Returns:
            The bundle, and for each text its translations, of which later ones may equal earlier
            ones.

        Raises:
            M2M100Error: those of `Translator.translate_batch`; the position is that of the text.
            Refused: a limit is exceeded, or no bundle has the languages.
        """
        if job.is_file:
            _check(sum(map(len, job.texts)), self.settings.limits.file_characters)
        else:
            self.check_size(job.texts)
        self.check_options(job.options)
        served, source, target = choose(
            self.engine.served, job.source_lang, job.target_lang, job.model
        )
        documents = await self._read(served, job, source) if html else []
        runs = [document.runs for document in documents] or [[Run(text)] for text in job.texts]
        passages = [[cut(run.text, source) for run in each] for each in runs]
        flat = [(owner, p) for owner, each in enumerate(passages) for run in each for p in run]
        owners = [owner for owner, passage in flat if passage.translated]
        sentences = [passage.text for _, passage in flat if passage.translated]
        if source == target or not sentences:
            return served, [[text] for text in job.texts]
        options = dict(job.options)
        if any(
            _is_cut(runs[n][m], of) for n, each in enumerate(passages) for m, of in enumerate(each)
        ):
            options["alignments"] = True
        if hypotheses > 1:
            beams = max(served.translator.defaults.beam_size, hypotheses)
            options |= {"num_hypotheses": hypotheses, "beam_size": beams}
        try:
            _, found = await self._call(job, sentences, options)
        except M2M100Error as error:
            if error.position is not None:
                error.position = owners[error.position]
            raise
        if documents:
            fill = partial(_filled, documents, passages, found, target)
            return served, [[text] for text in await _aside(job, fill)]
        return served, _assembled([each[0] for each in passages], found, target, hypotheses)

    async def _read(self, served: Served, job: Job, source: str) -> list[Markup]:
        """Reads HTML; where no alignment places tags, sentences end at them.

        Raises:
            Refused: it cannot be read.
        """
        documents = await _aside(job, partial(_documents, job.texts, inline=True))
        if any(_is_cut(run, cut(run.text, source)) for each in documents for run in each.runs):
            began = time.monotonic()
            aligns = await self._aligns(served, self.seconds(job))
            job.timeout = max(0.0, self.seconds(job) - (time.monotonic() - began))
            if not aligns:
                return await _aside(job, partial(_documents, job.texts, inline=False))
        return documents

    async def _aligns(self, served: Served, seconds: float) -> bool:
        """Says whether a bundle aligns. That is found out once, for all who ask meanwhile.

        Raises:
            DeadlineExceeded: it takes longer; it goes on for those who ask later.
            Refused: too many calls wait.
        """
        if served.aligns is None:
            work = partial(_aligns, served.translator)
            served.aligns = asyncio.ensure_future(self.engine.run(served, work, Cancellation()))
        aligns = served.aligns
        try:
            return await asyncio.wait_for(asyncio.shield(aligns), seconds)
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the time for the request is over") from None
        except (M2M100Error, Refused):
            if served.aligns is aligns:
                served.aligns = None
            raise


def _check(count: int, limit: int) -> None:
    """Refuses a count above a limit.

    Raises:
        Refused: it is too much.
    """
    if count > limit:
        message = f"Invalid request: request ({count}) exceeds text limit ({limit})"
        raise Refused("too_much", message)


async def _turn(
    call: Callable[[float, Cancellation], Awaitable[_T]],
    ends: float,
    cancellation: Cancellation,
    *,
    waits: bool,
) -> _T:
    """Makes a call, which takes the seconds that are left.

    Args:
        call: it.
        ends: when the time is over.
        cancellation: ends the call.
        waits: whether to wait where too many calls do. What has been done would be lost otherwise.

    Raises:
        Refused: too many calls wait.
    """
    while True:
        left = max(0.0, ends - time.monotonic())
        try:
            return await call(left, cancellation)
        except Refused as error:
            if not waits or error.reason != "busy" or not left:
                raise
            await asyncio.sleep(0.1)


async def _aside(job: Job, work: Callable[[], _T]) -> _T:
    """Returns what work returns. A file's is done in a thread, so that others are answered."""
    return await asyncio.to_thread(work) if job.is_file else work()


def _documents(texts: Sequence[str], *, inline: bool) -> list[Markup]:
    return [Markup(text, inline=inline) for text in texts]


def _is_cut(run: Run, passages: Sequence[Passage]) -> bool:
    return bool(run.elements) and is_cut(run.elements, passages)


def _aligns(translator: Translator) -> bool:
    """Says whether a translator has a head that aligns."""
    try:
        translator.alignment_heads()
    except (BundleError, InvalidInputError):
        return False
    return True


def _own(
    passages: Sequence[Passage], translations: Iterator[Translation]
) -> dict[int, Translation]:
    """Takes the translations of sentences, by their places among passages."""
    return {
        place: next(translations) for place, passage in enumerate(passages) if passage.translated
    }


def _filled(
    documents: Sequence[Markup],
    passages: Sequence[Sequence[Sequence[Passage]]],
    found: Sequence[Translation],
    target: str,
) -> list[str]:
    """Returns the documents that sentences make up."""
    left = iter(found)
    return [
        document.filled(
            [
                tagged(run.elements, of, target, _own(of, left))
                for run, of in zip(document.runs, runs, strict=True)
            ]
        )
        for document, runs in zip(documents, passages, strict=True)
    ]


def _assembled(
    passages: Sequence[Sequence[Passage]],
    found: Sequence[Translation],
    target: str,
    hypotheses: int,
) -> list[list[str]]:
    """Returns the texts that sentences make up, each as many times as there are hypotheses."""
    left = iter(found)
    results = []
    for of in passages:
        own = _own(of, left)
        versions = [
            joined(of, target, {place: _ranked(each, rank) for place, each in own.items()})
            for rank in range(hypotheses)
        ]
        results.append(versions)
    return results


def _ranked(translation: Translation, rank: int) -> str:
    """Returns a hypothesis, the best one where there are fewer."""
    some = translation.hypotheses
    return some[rank].text if rank < len(some) else translation.text


def service_of(request: Request) -> Service:
    """Returns the service that a request is for."""
    service: Service = request.app.state.service
    return service


async def while_connected(request: Request, cancellation: Cancellation, work: Awaitable[_T]) -> _T:
    """Returns what work returns, and cancels it when the client closes the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            cancellation.cancel()
        return await task
    finally:
        watch.cancel()
        if not task.done():  # This request's own task was cancelled.
            cancellation.cancel()
            task.cancel()
