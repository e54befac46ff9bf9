"""Reads the parameters of requests: JSON, forms and queries, and checks the types of their values.

Malformed bodies are refused, whatever is wrong with them. Knows no API.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import Request

from m2m100_onnx.server.refusals import Refused

__all__ = [
    "Upload",
    "content_type",
    "json_object",
    "parameters",
    "parse_json",
    "typed",
    "with_upload",
]

_T = TypeVar("_T")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class Upload:
    """A file that a client sends.

    Attributes:
        name: as the client has it, perhaps empty.
        content: its bytes.
    """

    name: str
    content: bytes


def content_type(request: Request) -> str:
    """Returns the type of a request's body, without its parameters; empty where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def parse_json(body: bytes, message: str = "expected JSON") -> Any:
    """Returns the value of a body.

    Raises:
        Refused: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused("bad_request", message) from None


async def json_object(request: Request) -> dict[str, Any]:
    """Returns the object that a body is.

    Raises:
        Refused: it is of another type, or something else.
    """
    if content_type(request) != "application/json":
        found = content_type(request) or "none"
        message = f"Content-Type: expected application/json, found {found}"
        raise Refused("content_type", message)
    found = parse_json(await request.body())
    if not isinstance(found, dict):
        raise Refused("bad_request", "expected a JSON object")
    return found


async def parameters(request: Request) -> dict[str, Any]:
    """Returns the parameters of a body, JSON or a form, and of the query, which comes second.

    A name that a form repeats has a list of its values.

    Raises:
        Refused: the body is malformed.
    """
    return (await with_upload(request))[0]


async def with_upload(request: Request) -> tuple[dict[str, Any], Upload | None]:
    """Returns what `parameters` does, and the file `file` of a form.

    Raises:
        Refused: the body is malformed.
    """
    upload: Upload | None = None
    found: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        found[name] = values[0] if len(values) == 1 else values
    kind = content_type(request)
    if kind == "application/json":
        body = parse_json(await request.body(), "Invalid JSON format")
        if not isinstance(body, dict):
            raise Refused("bad_request", "Invalid JSON format")
        found.update(body)
    elif kind in _FORMS:
        try:
            async with request.form(max_files=1, max_fields=2000) as form:
                file = form.get("file")
                if isinstance(file, UploadFile):
                    upload = Upload(file.filename or "", await file.read())
                for name in form:
                    every = form.getlist(name)
                    texts = [value for value in every if isinstance(value, str)]
                    if texts:
                        found[name] = texts[0] if len(texts) == 1 else texts
        except (LookupError, ValueError):  # An encoding that does not exist, for one.
            raise Refused("bad_request", "Invalid form") from None
    return found, upload


def typed(body: dict[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    """Takes a value out of a body.

    Raises:
        Refused: it has another type.
    """
    value = body.pop(name, default)
    # A bool is an int to Python, and not to a client.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {str: "a string", bool: "true or false", int: "an integer", dict: "an object"}
    expected = names.get(kind, kind.__name__)
    raise Refused("bad_request", f"{name}: expected {expected}, found {type(value).__name__}")
