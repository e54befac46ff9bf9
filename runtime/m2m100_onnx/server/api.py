"""Our own API, under `/v1`: what the library offers, with every option of its table.

Errors are `{"error": {"type", "message"}}`, and `position` where one text of several is meant.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from m2m100_onnx import __version__
from m2m100_onnx.errors import DeadlineExceeded, M2M100Error
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.server.bodies import json_object, typed
from m2m100_onnx.server.languages import all_codes, choose, name_of
from m2m100_onnx.server.openapi import CALL_OPTIONS
from m2m100_onnx.server.passages import Passage, cut, joined
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import reply
from m2m100_onnx.server.service import Job, Service, service_of, while_connected
from m2m100_onnx.translation import Translation
from m2m100_onnx.translator import Translator

__all__ = ["ROUTES"]


async def translations(request: Request) -> Response:
    """Translates texts, at once or as a stream of pieces."""
    service, body = service_of(request), await json_object(request)
    service.admission.check(request)
    streams, split = (typed(body, name, bool, False) for name in ("stream", "split"))
    job = _job(body)
    if streams:
        return await _streamed(request, job, split)
    if split:
        if job.options.keys() & {"num_hypotheses", "target_prefix", "terms"}:
            message = "split: expected neither num_hypotheses, target_prefix nor terms with it"
            raise Refused("bad_request", message)
        split_work = service.translate_passages(job)
        served, found = await while_connected(request, job.cancellation, split_work)
        rows: list[Any] = [{"text": versions[0]} for versions in found]
    else:
        work = service.translate(job)
        served, results = await while_connected(request, job.cancellation, work)
        rows = [_row(result) for result in results]
    return reply({"model": served.name, "translations": rows})


def _job(body: dict[str, Any]) -> Job:
    """Returns the job of a body; nothing may be left in it.

    Raises:
        Refused: a name is unknown, or a value has another type.
    """
    text = body.pop("text", None)
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        message = "text: expected a string, or a list of strings that is not empty"
        raise Refused("bad_request", message)
    job = Job(texts, _needed(body, "source_lang"), _needed(body, "target_lang"))
    if body.get("model") is not None:
        job.model = typed(body, "model", str, "")
    body.pop("model", None)
    prefix = body.pop("target_prefix", None)
    if prefix is not None:
        job.options["target_prefix"] = [prefix] * len(texts) if isinstance(prefix, str) else prefix
    terms = body.pop("terms", None)
    if terms is not None:
        job.options["terms"] = terms
    job.timeout = OPTIONS["timeout"].check(body.pop("timeout", None))
    for name in (*CALL_OPTIONS, "max_new_tokens", "min_new_tokens"):
        if name in body:
            job.options[name] = body.pop(name)
    if body:
        raise Refused("bad_request", f"unknown name: {min(body)}")
    return job


def _needed(body: dict[str, Any], name: str) -> str:
    if name not in body:
        raise Refused("bad_request", f"{name}: expected a string, found nothing")
    return typed(body, name, str, "")


async def _streamed(request: Request, job: Job, split: bool) -> Response:
    """Answers with server-sent events: pieces, then the whole translation or an error."""
    if len(job.texts) != 1:
        raise Refused("bad_request", "text: expected one text with stream, found several")
    service = service_of(request)
    service.check_size(job.texts)
    service.check_options(job.options)
    pieces = _pieces(service, job, split)
    # What is wrong with the request is said before the answer begins.
    first = await while_connected(request, job.cancellation, anext(pieces, None))
    return StreamingResponse(
        _events(service, job, pieces, first),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _pieces(service: Service, job: Job, split: bool) -> AsyncIterator[str]:
    served, source, target = choose(
        service.engine.served, job.source_lang, job.target_lang, job.model
    )
    (text,) = job.texts
    service.count(job.texts)
    ends = time.monotonic() + service.seconds(job)
    try:
        with service.engine.keep(served):
            for passage in cut(text, source) if split else [Passage(text, True)]:
                if not passage.translated:
                    yield joined([passage], target, {})
                    continue
                async for piece in service.engine.stream(
                    served,
                    passage.text,
                    source,
                    target,
                    job.options,
                    max(0.0, ends - time.monotonic()),
                    job.cancellation,
                ):
                    yield piece
    finally:
        job.cancellation.cancel()


async def _events(
    service: Service, job: Job, pieces: AsyncIterator[str], first: str | None
) -> AsyncIterator[str]:
    """Yields the events of a stream."""
    whole = first or ""
    try:
        if first is not None:
            yield _event(None, {"text": first})
            async for piece in pieces:
                whole += piece
                yield _event(None, {"text": piece})
        service.log(job.texts, [whole])
        yield _event("done", {"text": whole})
    except (M2M100Error, Refused) as error:
        kind = error.reason if isinstance(error, Refused) else type(error).__name__
        message = error.message
        if isinstance(error, DeadlineExceeded):
            message = "the time for the request is over"
        yield _event("error", {"type": kind, "message": message})


def _event(name: str | None, content: dict[str, str]) -> str:
    data = json.dumps(content)
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


def _row(translation: Translation) -> dict[str, Any]:
    """Returns a translation as JSON has it; `asdict` would copy every number for that."""
    return {
        **vars(translation),
        "hypotheses": [
            {**vars(each), "alignment": vars(each.alignment) if each.alignment else None}
            for each in translation.hypotheses
        ],
    }


async def alternatives(request: Request) -> Response:
    """Says how a translation may go on after a prefix."""
    service, body = service_of(request), await json_object(request)
    service.admission.check(request)
    count = typed(body, "count", int, 5)
    prefix = body.pop("prefix", None)
    job = _job(body)
    if len(job.texts) != 1 or not isinstance(prefix, (str, type(None))):
        raise Refused("bad_request", "expected one text, and a string as its prefix")
    if count > service.settings.limits.beams:
        raise Refused(
            "bad_request", f"count: expected at most {service.settings.limits.beams}, found {count}"
        )
    service.check_size(job.texts)
    service.check_options(job.options)

    def work(translator: Translator, source: str, target: str, **options: Any) -> list[Any]:
        found = translator.alternatives(
            job.texts[0],
            source_lang=source,
            target_lang=target,
            prefix=prefix,
            count=count,
            **options,
        )
        return [{**vars(each), "translation": _row(each.translation)} for each in found]

    name, rows = await _carried_out(request, job, work)
    return reply({"model": name, "alternatives": rows})


async def _carried_out(
    request: Request, job: Job, work: Callable[..., list[Any]]
) -> tuple[str, list[Any]]:
    """Returns the name of the bundle that a job is for, and what work on it returns.

    Args:
        request: it.
        job: names the bundle and the languages.
        work: takes the translator, both languages, and the options of the call by name.

    Raises:
        M2M100Error: those of the work.
        Refused: no bundle has the languages, or too many calls wait.
    """
    service = service_of(request)
    served, source, target = choose(
        service.engine.served, job.source_lang, job.target_lang, job.model
    )
    ends = time.monotonic() + service.seconds(job)

    def called() -> list[Any]:
        options = {**job.options, "timeout": max(0.0, ends - time.monotonic())}
        return work(served.translator, source, target, cancellation=job.cancellation, **options)

    run = service.engine.run(served, called, job.cancellation)
    with service.engine.keep(served):
        return served.name, await while_connected(request, job.cancellation, run)


async def scores(request: Request) -> Response:
    """Says how likely the model holds translations that are given."""
    service, body = service_of(request), await json_object(request)
    service.admission.check(request)
    targets = body.pop("target", None)
    entropy = typed(body, "entropy", bool, False)
    job = _job(body)
    targets = [targets] if isinstance(targets, str) else targets
    if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
        raise Refused("bad_request", "target: expected a string, or a list of strings")
    if len(targets) != len(job.texts) or job.options.keys() - {"truncate"}:
        raise Refused("bad_request", "target: expected one for each text, and no search options")
    service.check_size([*job.texts, *targets])

    def work(translator: Translator, source: str, target: str, **options: Any) -> list[Any]:
        found = translator.score(
            list(job.texts),
            targets,
            source_lang=source,
            target_lang=target,
            entropy=entropy,
            **options,
        )
        rows = [{"sum": each.sum, "mean": each.mean, **vars(each)} for each in found]
        # JSON has no NaN: the mean of no tokens.
        return [
            {**row, "mean": row["mean"] if row["mean"] == row["mean"] else None} for row in rows
        ]

    name, rows = await _carried_out(request, job, work)
    return reply({"model": name, "scores": rows})


async def embeddings(request: Request) -> Response:
    """Returns a vector for each text."""
    service, body = service_of(request), await json_object(request)
    service.admission.check(request)
    given = body.get("target_lang") is not None
    if not given:  # SMaLL-100's encoder alone reads it.
        body["target_lang"] = body.get("source_lang")
    job = _job(body)
    if job.options.keys() - {"truncate"}:
        raise Refused("bad_request", f"unknown name: {min(job.options.keys() - {'truncate'})}")
    service.check_size(job.texts)

    def work(translator: Translator, source: str, target: str, **options: Any) -> list[Any]:
        found = translator.embed(
            list(job.texts),
            source_lang=source,
            target_lang=target if given else None,
            **options,
        )
        rows: list[Any] = found.tolist()
        return rows

    name, rows = await _carried_out(request, job, work)
    return reply({"model": name, "embeddings": rows})


async def detections(request: Request) -> Response:
    """Detects the language of a text."""
    service, body = service_of(request), await json_object(request)
    service.admission.check(request)
    text = _needed(body, "text")
    if body:
        raise Refused("bad_request", f"unknown name: {min(body)}")
    service.check_size([text])
    found = service.detector.detect(text, all_codes(service.engine.served))
    rows = [{"language": each.language, "confidence": each.confidence} for each in found]
    return reply({"detections": rows})


async def languages(request: Request) -> Response:
    """Lists the languages."""
    codes = all_codes(service_of(request).engine.served)
    return reply({"languages": [{"code": code, "name": name_of(code)} for code in codes]})


async def models(request: Request) -> Response:
    """Lists the bundles."""
    service = service_of(request)
    rows = [
        {
            "name": each.name,
            "precision": each.translator.bundle.precision,
            "languages": list(each.translator.languages),
            "defaults": asdict(each.translator.defaults),
        }
        for each in service.engine.served
    ]
    return reply(
        {
            "version": __version__,
            "models": rows,
            "detection": service.detector.available,
            "api_key_required": service.admission.needs_key,
            "limits": asdict(service.settings.limits),
        }
    )


ROUTES = (
    Route("/v1/translations", translations, methods=["POST"]),
    Route("/v1/alternatives", alternatives, methods=["POST"]),
    Route("/v1/scores", scores, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/detections", detections, methods=["POST"]),
    Route("/v1/languages", languages, methods=["GET"]),
    Route("/v1/models", models, methods=["GET"]),
)
