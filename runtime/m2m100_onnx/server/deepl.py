"""DeepL's API, version 2: what its official clients send, and what they need in an answer.

A parameter that has no effect here is named in the header `X-Ignored-Parameters`; what would be
wrong to ignore, such as a glossary, is refused.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from m2m100_onnx.server.bodies import parameters
from m2m100_onnx.server.languages import all_codes, choose, deepl_codes, name_of
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import reply
from m2m100_onnx.server.service import Job, Service, service_of, while_connected

__all__ = ["ROUTES"]

_UNLIMITED = 1_000_000_000_000
_MOST_TEXTS = 50
# What is read; `show_billed_characters` is always so, and `auth_key` is an older way to give a key.
_READ = {
    *("text", "target_lang", "source_lang", "tag_handling", "split_sentences"),
    *("show_billed_characters", "auth_key"),
}
_REFUSED = ("glossary_id", "style_id", "custom_instructions", "translation_memory_id")


async def translate(request: Request) -> Response:
    """Translates texts."""
    service, given = service_of(request), await parameters(request)
    texts = _texts(given)
    service.admission.check(request, _key(given), len(texts))
    for name in _REFUSED:
        if given.get(name):
            raise Refused("bad_request", f"{name} is not supported by this server")
    target = _text(given, "target_lang")
    source = _source(service, given, texts)
    html = _handles_html(given)
    options = ("0", "1", "nonewlines", None)
    splits = given.get("split_sentences")
    if splits not in options:
        raise Refused("bad_request", "split_sentences: expected 0, 1 or nonewlines")
    job = Job(texts, source, target)
    if splits == "0" and not html:
        _, plain = await while_connected(request, job.cancellation, service.translate(job))
        found = [result.text for result in plain]
    else:
        if splits == "nonewlines" and not html:
            job.texts = [text.replace("\r\n", " ").replace("\n", " ") for text in texts]
        work = service.translate_passages(job, html=html)
        _, results = await while_connected(request, job.cancellation, work)
        found = [versions[0] for versions in results]
    code = choose(service.engine.served, source, target)[1]
    rows = [
        {
            "detected_source_language": deepl_codes(code, target=False)[0],
            "text": translation,
            "billed_characters": len(text),
        }
        for text, translation in zip(texts, found, strict=True)
    ]
    ignored = sorted(given.keys() - _READ - set(_REFUSED))
    # A name is the client's, and a header takes little of what it may contain.
    shown = [name for name in ignored if name.isascii() and name.isidentifier()][:20]
    headers = {"X-Ignored-Parameters": ", ".join(shown)} if shown else None
    return reply({"translations": rows}, headers=headers)


def _texts(given: dict[str, Any]) -> list[str]:
    texts = given.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise Refused("bad_request", "Parameter 'text' not specified.")
    if len(texts) > _MOST_TEXTS:
        message = f"text: expected at most {_MOST_TEXTS} texts, found {len(texts)}"
        raise Refused("too_much", message)
    return texts


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise Refused("bad_request", f"Parameter '{name}' not specified.")
    return value


def _source(service: Service, given: dict[str, Any], texts: list[str]) -> str:
    """Returns the language of the texts: the one that is given, or the one that is detected."""
    if given.get("source_lang"):
        return _text(given, "source_lang")
    if not service.detector.available:
        raise Refused("bad_request", "Parameter 'source_lang' not specified.")
    codes = all_codes(service.engine.served)
    return service.detector.detect(" ".join(texts), codes)[0].language


def _handles_html(given: dict[str, Any]) -> bool:
    handling = given.get("tag_handling")
    if handling not in (None, "", "html"):
        raise Refused("bad_request", f"tag_handling: expected html, found {handling}")
    return handling == "html"


def _key(given: dict[str, Any]) -> str | None:
    key = given.get("auth_key")
    return key if isinstance(key, str) else None


async def languages(request: Request) -> Response:
    """Lists the source or the target languages."""
    service, given = service_of(request), await parameters(request)
    service.admission.check(request, _key(given))
    kind = given.get("type") or "source"
    if kind not in ("source", "target"):
        raise Refused("bad_request", f"type: expected source or target, found {kind}")
    rows = []
    for code in all_codes(service.engine.served):
        for shown in deepl_codes(code, target=kind == "target"):
            row: dict[str, Any] = {"language": shown, "name": name_of(code)}
            if kind == "target":
                row["supports_formality"] = False
            rows.append(row)
    return reply(rows)


async def usage(request: Request) -> Response:
    """Says how many characters the server has translated; there is no limit."""
    service = service_of(request)
    service.admission.check(request)
    return reply({"character_count": service.metrics.all_received(), "character_limit": _UNLIMITED})


async def unsupported(request: Request) -> Response:
    """Refuses documents and glossaries."""
    await request.body()
    what = "documents" if "document" in request.url.path else "glossaries"
    raise Refused("bad_request", f"{what} are not supported by this server")


_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
ROUTES = (
    Route("/v2/translate", translate, methods=["POST"]),
    Route("/v2/languages", languages, methods=["GET", "POST"]),
    Route("/v2/usage", usage, methods=["GET", "POST"]),
    Route("/v2/document", unsupported, methods=_ANY),
    Route("/v2/document/{rest:path}", unsupported, methods=_ANY),
    Route("/v2/glossary-language-pairs", unsupported, methods=_ANY),
    *(
        Route(f"/{version}/glossaries{rest}", unsupported, methods=_ANY)
        for version in ("v2", "v3")
        for rest in ("", "/{rest:path}")
    ),
)
