"""The Open Inference Protocol, version 2, of KServe and Triton, with tensors of text.

A bundle is a model with three inputs and two outputs. Tensors of type BYTES come as JSON strings,
or after the JSON in Triton's binary form: each string after its length, four bytes, low byte first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from m2m100_onnx import __version__
from m2m100_onnx.server.bodies import parse_json
from m2m100_onnx.server.engine import Served
from m2m100_onnx.server.openapi import CALL_OPTIONS
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import reply
from m2m100_onnx.server.service import Job, Service, service_of, while_connected
from m2m100_onnx.translation import Translation

__all__ = ["ROUTES"]

_LENGTH = "Inference-Header-Content-Length"
_INPUTS = ("text", "source_lang", "target_lang")
_OUTPUTS = {"translation": "BYTES", "score": "FP32"}
_VERSION = "1"


async def server(request: Request) -> Response:  # noqa: ARG001 - as routes are called
    """Describes the server."""
    extensions = ["binary_tensor_data"]
    return reply({"name": "m2m100-onnx", "version": __version__, "extensions": extensions})


async def live(request: Request) -> Response:  # noqa: ARG001 - as routes are called
    """Says that the process runs."""
    return reply({"live": True})


async def ready(request: Request) -> Response:
    """Says whether the server takes requests."""
    closing = service_of(request).engine.closing
    return reply({"ready": not closing}, 503 if closing else 200)


async def model(request: Request) -> Response:
    """Describes a model."""
    served = _served(request)
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _INPUTS]
    outputs = [{"name": n, "datatype": kind, "shape": [-1]} for n, kind in _OUTPUTS.items()]
    facts = {"name": served.name, "versions": [_VERSION], "platform": "m2m100-onnx"}
    return reply({**facts, "inputs": inputs, "outputs": outputs})


async def model_ready(request: Request) -> Response:
    """Says that a model is open."""
    return reply({"name": _served(request).name, "ready": True})


def _served(request: Request) -> Served:
    """Returns the bundle that a path names.

    Raises:
        Refused: there is none.
    """
    name, version = request.path_params["name"], request.path_params.get("version", _VERSION)
    for served in service_of(request).engine.served:
        if served.name == name and version == _VERSION:
            return served
    raise Refused("not_found", f"there is no model {name!r} of version {version}")


async def infer(request: Request) -> Response:
    """Translates the texts of a tensor."""
    service, served = service_of(request), _served(request)
    service.admission.check(request)
    asked, binary = _read(await request.body(), request.headers.get(_LENGTH))
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused("bad_request", "parameters: expected an object")
    outputs = _wanted(asked.get("outputs"), parameters.get("binary_data_output", False) is True)
    tensors, shape = _inputs(asked.get("inputs"), binary)
    found = await _translated(request, service, served, tensors, parameters)
    answer: dict[str, Any] = {"model_name": served.name, "model_version": _VERSION}
    if isinstance(asked.get("id"), str):
        answer["id"] = asked["id"]
    return _answer(answer, outputs, shape, found)


async def _translated(
    request: Request,
    service: Service,
    served: Served,
    tensors: dict[str, list[str]],
    parameters: dict[str, Any],
) -> list[Translation]:
    """Translates texts, those of a pair of languages together."""
    options = {name: parameters[name] for name in CALL_OPTIONS if name in parameters}
    timeout = parameters.get("timeout")
    # Triton's unit is the microsecond.
    valid = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0
    if timeout is not None and not valid:
        raise Refused("bad_request", "timeout: expected microseconds of 0 or more")
    texts = tensors["text"]
    service.check_size(texts)
    pairs: dict[tuple[str, str], list[int]] = {}
    languages = zip(
        *(_spread(tensors[name], len(texts), name) for name in _INPUTS[1:]), strict=True
    )
    for position, pair in enumerate(languages):
        pairs.setdefault(pair, []).append(position)
    found: dict[int, Translation] = {}
    for (source, target), positions in pairs.items():
        job = Job([texts[n] for n in positions], source, target, served.name, options)
        job.timeout = None if timeout is None else timeout / 1e6
        _, some = await while_connected(request, job.cancellation, service.translate(job))
        found.update(zip(positions, some, strict=True))
    return [found[n] for n in range(len(texts))]


def _spread(values: list[str], count: int, name: str) -> list[str]:
    """Returns a value for each text; one value is that of all."""
    if len(values) == 1:
        return values * count
    if len(values) != count:
        message = f"{name}: expected 1 element or {count}, found {len(values)}"
        raise Refused("bad_request", message)
    return values


def _read(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """Returns the JSON of a body, and the bytes after it."""
    size = len(body)
    if length is not None:
        if not length.isdecimal() or int(length[:12]) > size:
            raise Refused("bad_request", f"{_LENGTH}: expected a number up to {size}")
        size = int(length)
    asked = parse_json(body[:size])
    if not isinstance(asked, dict):
        raise Refused("bad_request", "expected a JSON object")
    return asked, body[size:]


def _wanted(outputs: Any, binary: bool) -> dict[str, bool]:
    """Returns the outputs to give, and which of them in binary form."""
    if outputs is None:
        return dict.fromkeys(_OUTPUTS, binary)
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise Refused("bad_request", "outputs: expected a list of objects")
    wanted = {}
    for each in outputs:
        name, parameters = each.get("name"), each.get("parameters", {})
        if not isinstance(name, str) or name not in _OUTPUTS or not isinstance(parameters, dict):
            raise Refused("bad_request", f"outputs: expected {', '.join(_OUTPUTS)}")
        if "classification" in parameters:
            raise Refused("bad_request", "classification is not supported")
        wanted[name] = parameters.get("binary_data", binary) is True
    return wanted


def _inputs(inputs: Any, binary: bytes) -> tuple[dict[str, list[str]], list[int]]:
    """Returns the strings of each input, and the shape of the texts."""
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise Refused("bad_request", "inputs: expected a list of objects")
    found: dict[str, list[str]] = {}
    shapes: dict[str, list[int]] = {}
    for tensor in inputs:
        name, shape, parameters = (tensor.get(key) for key in ("name", "shape", "parameters"))
        if not isinstance(name, str) or name not in _INPUTS or name in found:
            raise Refused("bad_request", f"inputs: expected {', '.join(_INPUTS)} once each")
        if tensor.get("datatype") != "BYTES":
            raise Refused("bad_request", f"{name}: expected the datatype BYTES")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            found[name] = _strings(tensor.get("data"), name)
        elif type(size) is int and 0 <= size <= len(binary):
            found[name], binary = _unpacked(binary[:size], name), binary[size:]
        else:
            raise Refused("bad_request", f"{name}: binary_data_size exceeds the body")
        shapes[name] = _shape(shape, len(found[name]), name)
    if missing := [name for name in _INPUTS if name not in found]:
        raise Refused("bad_request", f"inputs: expected {missing[0]}, found none")
    if binary:
        raise Refused("bad_request", f"{len(binary)} bytes belong to no input")
    if not found["text"]:
        raise Refused("bad_request", "text: expected an element, found none")
    return found, shapes["text"]


def _shape(shape: Any, count: int, name: str) -> list[int]:
    """Returns the shape of a tensor that has as many elements."""
    total = 1
    valid = isinstance(shape, list) and len(shape) <= 8
    for size in shape if valid else ():
        valid = valid and type(size) is int and 0 <= size <= count
        total *= size if valid else 0
    if not valid or total != count:
        raise Refused("bad_request", f"{name}: expected a shape of {count} elements")
    return list(shape)


def _strings(data: Any, name: str) -> list[str]:
    """Returns the strings of a list, which may be nested as the shape is."""
    flat, depth = data, 0
    while isinstance(flat, list) and flat and all(isinstance(each, list) for each in flat):
        flat, depth = [each for part in flat for each in part], depth + 1
        if depth > 8:
            break
    if not isinstance(flat, list) or not all(isinstance(each, str) for each in flat):
        raise Refused("bad_request", f"{name}: expected a list of strings as its data")
    return flat


def _unpacked(data: bytes, name: str) -> list[str]:
    """Returns the strings of a tensor in binary form."""
    found, position = [], 0
    try:
        while position < len(data):
            (size,) = struct.unpack_from("<I", data, position)
            position += 4 + size
            if position > len(data):
                raise ValueError
            found.append(data[position - size : position].decode("utf-8"))
    except (ValueError, struct.error):
        message = f"{name}: expected strings of UTF-8 after their lengths"
        raise Refused("bad_request", message) from None
    return found


def _answer(
    answer: dict[str, Any],
    outputs: dict[str, bool],
    shape: list[int],
    found: Sequence[Translation],
) -> Response:
    """Returns the tensors, those in binary form after the JSON."""
    parts: list[bytes] = []
    answer["outputs"] = []
    for name, binary in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": _OUTPUTS[name], "shape": shape}
        values: list[Any] = [each.text if name == "translation" else each.score for each in found]
        if binary:
            parts.append(_packed(values))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = values
        answer["outputs"].append(tensor)
    if not parts:
        return reply(answer)
    head = json.dumps(answer).encode()
    body = b"".join([head, *parts])
    kind = "application/octet-stream"
    return Response(body, headers={_LENGTH: str(len(head))}, media_type=kind)


def _packed(values: Sequence[str | float]) -> bytes:
    """Returns the values of a tensor in binary form."""
    packed = []
    for value in values:
        if isinstance(value, str):
            text = value.encode("utf-8", "replace")
            packed.append(struct.pack("<I", len(text)) + text)
        else:
            packed.append(struct.pack("<f", value))
    return b"".join(packed)


_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
ROUTES = (
    Route("/v2", server, methods=["GET"]),
    Route("/v2/health/live", live, methods=["GET"]),
    Route("/v2/health/ready", ready, methods=["GET"]),
    *(Route(path, model, methods=["GET"]) for path in _MODELS),
    *(Route(f"{path}/ready", model_ready, methods=["GET"]) for path in _MODELS),
    *(Route(f"{path}/infer", infer, methods=["POST"]) for path in _MODELS),
)
"""The protocol's paths."""
