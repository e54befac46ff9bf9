"""LibreTranslate's API: its paths, parameters, statuses and messages, so that its clients work.

What is switched off answers as a LibreTranslate does that has it off.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from m2m100_onnx.server.bodies import parameters, with_upload
from m2m100_onnx.server.detection import Detected
from m2m100_onnx.server.documents import FORMATS, Document
from m2m100_onnx.server.languages import all_codes, as_shown, name_of, supported_code
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import reply
from m2m100_onnx.server.service import Job, Service, service_of, while_connected

__all__ = ["ROUTES"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_NO_FILES = "Files translation are disabled on this server."


async def translate(request: Request) -> Response:
    """Translates a text, or a list of texts."""
    service, given = service_of(request), await parameters(request)
    texts, single = _texts(given)
    source, target = (_text(given, name) for name in ("source", "target"))
    service.admission.check(request, _key(given), len(texts))
    service.check_size(texts)
    wanted = _alternatives(given, service.settings.limits.alternatives)
    kind = given.get("format") or "text"
    if kind not in ("text", "html"):
        raise Refused("bad_request", f"{kind} format is not supported")
    detected = None
    if source == "auto":
        detected = _detect(service, " ".join(texts))[0]
        source = detected.language
    job = Job(texts, source, target)
    hypotheses = 1 if kind == "html" else wanted + 1
    work = service.translate_passages(job, hypotheses=hypotheses, html=kind == "html")
    _, found = await while_connected(request, job.cancellation, work)
    answer: dict[str, Any] = {"translatedText": [versions[0] for versions in found]}
    if detected is not None:
        shown = _shown(detected)
        answer["detectedLanguage"] = shown if single else [shown] * len(texts)
    if wanted:
        answer["alternatives"] = [_others(versions) for versions in found]
    if single:
        for name in ("translatedText", "alternatives"):
            if name in answer:
                (answer[name],) = answer[name]
    return reply(answer)


def _others(versions: list[str]) -> list[str]:
    """Returns the versions after the first that differ from all before them."""
    return list(dict.fromkeys(version for version in versions[1:] if version != versions[0]))


def _texts(given: dict[str, Any]) -> tuple[list[str], bool]:
    """Returns the texts of a request, and whether it is one that is no list."""
    q = given.get("q")
    single = not isinstance(q, list)
    texts: list[Any] = q if isinstance(q, list) else [q]
    if not q or not all(isinstance(text, str) for text in texts):
        raise Refused("bad_request", "Invalid request: missing q parameter")
    return [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts], single


def _text(given: dict[str, Any], name: str) -> str:
    """Returns a parameter that must be there."""
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise Refused("bad_request", f"Invalid request: missing {name} parameter")
    return value


def _key(given: dict[str, Any]) -> str | None:
    """Returns the API key of a body; a client from npm spells it otherwise."""
    for name in ("api_key", "apiKey"):
        value = given.get(name)
        if not isinstance(value, (str, type(None))):
            raise Refused("bad_request", f"Invalid request: {name} parameter is not a string")
        if value:
            return value
    return None


def _alternatives(given: dict[str, Any], most: int) -> int:
    try:
        value = given.get("alternatives") or 0
        wanted = int(value) if isinstance(value, (int, str)) else -1
    except ValueError:
        wanted = -1
    if wanted < 0:
        message = "Invalid request: alternatives parameter is not a number"
        raise Refused("bad_request", message)
    if wanted > most:
        message = f"Invalid request: alternatives parameter must be <= {most}"
        raise Refused("bad_request", message)
    return wanted


def _detect(service: Service, text: str) -> list[Detected]:
    if not service.detector.available:
        raise Refused("bad_request", "auto is not supported")
    return service.detector.detect(text, all_codes(service.engine.served))


def _shown(detected: Detected) -> dict[str, Any]:
    return {"confidence": detected.confidence, "language": as_shown(detected.language)}


async def detect(request: Request) -> Response:
    """Detects the language of a text."""
    service, given = service_of(request), await parameters(request)
    texts, _ = _texts(given)
    service.admission.check(request, _key(given))
    service.check_size(texts)
    codes = all_codes(service.engine.served)
    return reply([_shown(each) for each in service.detector.detect(" ".join(texts), codes)])


async def languages(request: Request) -> Response:
    """Lists the languages, and what each can be translated into."""
    served = service_of(request).engine.served
    rows = []
    for code in all_codes(served):
        targets = all_codes([each for each in served if code in each.translator.languages])
        shown = [as_shown(target) for target in targets]
        rows.append({"code": as_shown(code), "name": name_of(code), "targets": shown})
    return reply(rows)


async def settings(request: Request) -> Response:
    """Says what a page may offer."""
    service = service_of(request)
    codes = all_codes(service.engine.served)
    first = "en" if "en" in codes else codes[0]
    other = next((code for code in codes if code != first), first)
    source = "auto" if service.detector.available else first
    names = {"auto": "Auto Detect"}
    language = {
        place: {"code": as_shown(code), "name": names.get(code) or name_of(code)}
        for place, code in (("source", source), ("target", other))
    }
    return reply(
        {
            "charLimit": service.settings.limits.characters,
            "frontendTimeout": 500,
            "apiKeys": service.admission.needs_key,
            "keyRequired": service.admission.needs_key,
            "suggestions": service.settings.suggestions is not None,
            "filesTranslation": service.results is not None,
            "supportedFilesFormat": [*FORMATS] if service.results is not None else [],
            "language": language,
        }
    )


async def suggest(request: Request) -> Response:
    """Keeps a translation that a reader suggests, where the operator wants them."""
    service, given = service_of(request), await parameters(request)
    path = service.settings.suggestions
    if path is None:
        raise Refused("switched_off", "Suggestions are disabled on this server.")
    texts = {name: _text(given, name) for name in ("q", "s", "source", "target")}
    service.admission.check(request, _key(given))
    service.check_size([texts["q"], texts["s"]])
    codes = all_codes(service.engine.served)
    for name in ("source", "target"):
        if texts[name] != "auto" and supported_code(texts[name], codes) is None:
            raise Refused("bad_request", f"{texts[name]} is not supported")

    def write() -> None:
        # Without a buffer it is one write, which other workers cannot cut.
        with path.open("ab", buffering=0) as output:
            output.write(json.dumps(texts).encode() + b"\n")

    await asyncio.to_thread(write)
    return reply({"success": True})


async def translate_file(request: Request) -> Response:
    """Translates a file; answers where its translation can be fetched."""
    service, (given, upload) = service_of(request), await with_upload(request)
    results = service.results
    if results is None:
        raise Refused("switched_off", _NO_FILES)
    if upload is None:
        raise Refused("bad_request", "Invalid request: missing file parameter")
    source, target = (_text(given, name) for name in ("source", "target"))
    cost = max(1, len(upload.content) // service.settings.limits.characters)
    service.admission.check(request, _key(given), cost)
    if not upload.name:
        raise Refused("bad_request", "Invalid request: empty file")
    document = await asyncio.to_thread(Document, upload.name, upload.content)
    if source == "auto":
        source = _detect(service, " ".join(document.texts))[0].language
    job = Job(document.texts, source, target, is_file=True)
    work = service.translate_passages(job, html=document.is_html)
    _, found = await while_connected(request, job.cancellation, work)
    content = await asyncio.to_thread(document.filled, [versions[0] for versions in found])
    try:
        name = await asyncio.to_thread(results.keep, upload.name, target, document.ending, content)
    except OSError as error:
        _LOGGER.error("a translated file could not be kept: %s", error)
        raise Refused("busy", "the server has no space for the file", 60.0) from None
    return reply({"translatedFileUrl": str(request.url_for("download_file", name=name))})


async def download_file(request: Request) -> Response:
    """Returns a translated file. Its name is its key: nobody can guess it."""
    results = service_of(request).results
    if results is None:
        raise Refused("switched_off", _NO_FILES)
    path, name = await asyncio.to_thread(results.find, request.path_params["name"])
    return FileResponse(path, media_type=FORMATS[path.suffix], filename=name)


async def health(request: Request) -> Response:  # noqa: ARG001 - as routes are called
    """Says that the server runs."""
    return reply({"status": "ok"})


ROUTES = (
    Route("/translate", translate, methods=["POST"]),
    Route("/detect", detect, methods=["POST"]),
    Route("/languages", languages, methods=["GET"]),
    Route("/frontend/settings", settings, methods=["GET"]),
    Route("/suggest", suggest, methods=["POST"]),
    Route("/translate_file", translate_file, methods=["POST"]),
    Route("/download_file/{name:path}", download_file, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
)
"""The API's paths; `/spec` is the document of all APIs."""
