"""Answers in the shape of the API that was asked: JSON, and each API's errors and statuses.

Knows paths and shapes. Refuses to know what a request was about.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from m2m100_onnx.errors import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InferenceError,
    M2M100Error,
)
from m2m100_onnx.server.refusals import Reason, Refused

__all__ = [
    "Face",
    "as_failure",
    "as_gone",
    "as_http_exception",
    "as_m2m100_error",
    "as_refused",
    "face_of",
    "reply",
]

Face = Literal["libretranslate", "deepl", "inference", "own"]

_DEEPL = ("translate", "languages", "usage", "document", "glossaries", "glossary-language-pairs")
_OWN_PATHS = ("/metrics", "/openapi.json")
_STATUSES: Mapping[Reason, int] = {
    "bad_request": 400,
    "not_found": 404,
    "missing_key": 401,
    "wrong_key": 401,
    "switched_off": 403,
    "body_too_large": 413,
    "too_much": 413,
    "slow": 408,
    "two_lengths": 400,
    "encoding": 415,
    "content_type": 415,
    "rate": 429,
    "busy": 503,
}
# Where an API's own contract says something else.
_OWN_STATUSES: Mapping[Face, Mapping[Reason, int]] = {
    "libretranslate": {"missing_key": 400, "wrong_key": 403, "too_much": 400},
    "deepl": {"missing_key": 403, "wrong_key": 403},
    "inference": {},
    "own": {},
}


def face_of(path: str) -> Face:
    """Returns the API that a path belongs to."""
    parts = path.split("/")
    if parts[1:2] == ["v1"] or path.startswith("/health/") or path in _OWN_PATHS:
        return "own"
    if parts[1:2] in (["v2"], ["v3"]):
        return "deepl" if parts[2:3] and parts[2] in _DEEPL else "inference"
    return "libretranslate"


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a response of JSON in UTF-8; what is no Unicode, half a pair, becomes `?`."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = text.encode("utf-8", errors="replace")
    return Response(body, status, headers, media_type="application/json")


def _error(
    request: Request,
    status: int,
    kind: str,
    message: str,
    *,
    position: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns an error in the shape of the API that the path belongs to."""
    face = face_of(request.scope["path"])
    if face == "own":
        error: dict[str, Any] = {"type": kind, "message": message}
        if position is not None:
            error["position"] = position
        return reply({"error": error}, status, headers)
    if face == "deepl":
        return reply({"message": message, "detail": kind}, status, headers)
    if face == "libretranslate" and status in (404, 405):
        page = f"<!doctype html>\n<title>{status}</title>\n<h1>{html.escape(message)}</h1>\n"
        return HTMLResponse(page, status, headers)
    return reply({"error": message}, status, headers)


def as_refused(request: Request, error: Exception) -> Response:
    """Answers a request that the server refuses."""
    assert isinstance(error, Refused)
    face = face_of(request.scope["path"])
    status = _OWN_STATUSES[face].get(error.reason, _STATUSES[error.reason])
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.reason in ("slow", "body_too_large", "two_lengths"):
        headers["Connection"] = "close"  # The rest of the body is not read.
    return _error(request, status, error.reason, error.message, headers=headers)


def as_m2m100_error(request: Request, error: Exception) -> Response:
    """Answers a request that the library refuses, or could not carry out."""
    assert isinstance(error, M2M100Error)
    kind, headers = type(error).__name__, {}
    if isinstance(error, DeadlineExceeded):
        # The seconds may be those of the server, which are less than those of the client.
        return _error(request, 504, kind, "the time for the request is over")
    if isinstance(error, Cancelled):
        return _error(request, 499, kind, "the client has closed the connection")
    if isinstance(error, ClosedError):
        headers["Retry-After"] = "1"
        return _error(request, 503, kind, "the server is closing", headers=headers)
    status = 500 if isinstance(error, InferenceError) else 400
    message = "the model failed" if status == 500 else error.message
    return _error(request, status, kind, message, position=error.position)


def as_http_exception(request: Request, error: Exception) -> Response:
    """Answers a request for a path or a method that does not exist, or with a malformed body."""
    assert isinstance(error, HTTPException)
    return _error(request, error.status_code, "bad_request", error.detail, headers=error.headers)


def as_gone(request: Request, error: Exception) -> Response:  # noqa: ARG001 - as handlers are called
    """Ends a request whose client went in the middle of its body; nobody reads the answer."""
    return Response(status_code=499)


def as_failure(request: Request) -> Response:
    """Answers a request that failed for a reason that nobody expected."""
    return _error(request, 500, "internal", "the server failed; its log has more")
