"""The application: routes of all APIs, errors in their shapes, health, metrics, the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from m2m100_onnx.errors import M2M100Error
from m2m100_onnx.server import api, deepl, inference_protocol, libretranslate
from m2m100_onnx.server.detection import Detector
from m2m100_onnx.server.engine import Engine, Served
from m2m100_onnx.server.guard import Guard
from m2m100_onnx.server.keys import Keys
from m2m100_onnx.server.languages import all_codes
from m2m100_onnx.server.limits import Admission, Rate, SharedRate
from m2m100_onnx.server.metrics import Metrics
from m2m100_onnx.server.openapi import document
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import (
    as_gone,
    as_http_exception,
    as_m2m100_error,
    as_refused,
    reply,
)
from m2m100_onnx.server.results import Results
from m2m100_onnx.server.service import Service, service_of
from m2m100_onnx.server.settings import Settings
from m2m100_onnx.server.tracing import Traces

__all__ = ["make_app", "make_service"]

_STATIC = {
    "": ("index.html", "text/html"),
    "docs": ("docs.html", "text/html"),
    "docs.js": ("docs.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "page.svg": ("page.svg", "image/svg+xml"),
}


async def live(request: Request) -> Response:  # noqa: ARG001 - as routes are called
    """Says that the process runs."""
    return reply({"status": "live"})


async def ready(request: Request) -> Response:
    """Says whether the server takes requests: not any more once it drains."""
    if service_of(request).engine.closing:
        return reply({"status": "closing"}, 503)
    return reply({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Answers Prometheus; where API keys are needed, it needs one too."""
    service = service_of(request)
    service.admission.check(request)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def specification(request: Request) -> Response:
    """Returns the OpenAPI document."""
    service = service_of(request)
    return reply(document(service.settings.limits, all_codes(service.engine.served)))


async def page(request: Request) -> Response:
    """Returns a file of the page."""
    name, kind = _STATIC[request.url.path.lstrip("/")]
    content = files("m2m100_onnx.server") / "static" / name
    return Response(content.read_bytes(), media_type=kind)


# A request is compared with one route after another: first come those that are asked for most.
_ROUTES = (
    *api.ROUTES,
    *libretranslate.ROUTES,
    *deepl.ROUTES,
    *inference_protocol.ROUTES,
    *(Route(f"/{path}", page, methods=["GET"]) for path in _STATIC),
    Route("/health/live", live, methods=["GET"]),
    Route("/health/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/spec", specification, methods=["GET"]),
    Route("/openapi.json", specification, methods=["GET"]),
)


def make_service(
    open_bundles: Callable[[], tuple[Served, ...]],
    settings: Settings,
    threads: int,
    *,
    metrics: Metrics | None = None,
    rate: SharedRate | None = None,
    folder: Path | None = None,
) -> Service:
    """Opens the bundles and returns what the APIs are built on.

    Args:
        open_bundles: opens them.
        settings: what the operator has set.
        threads: calls that run at the same time.
        metrics: takes the numbers; None for ones of this process alone.
        rate: counts the requests of clients; None for a count of this process alone.
        folder: has translated files, and nothing else; None switches their translation off.

    Raises:
        M2M100Error: a bundle or the file of API keys cannot be used.
        DependencyError: traces are on, and OpenTelemetry is not installed.
        OSError: a file cannot be read.
    """
    limits, counts = settings.limits, metrics or Metrics()
    counts.workers.set(1)
    keys = Keys(settings.api_keys) if settings.api_keys else None
    per_minute = limits.requests_per_minute
    own_rate = Rate(per_minute) if per_minute else None
    admission = Admission(keys, rate or own_rate)
    traces = Traces(settings.traces)
    engine = Engine(
        open_bundles,
        counts,
        traces,
        threads=threads,
        most_calls=limits.calls,
        memory=limits.memory,
    )
    results = None
    if folder is not None:
        results = Results(folder, limits.file_minutes * 60, limits.file_bytes)
    return Service(engine, settings, admission, counts, Detector(), results, traces)


def make_app(service: Service) -> ASGIApp:
    """Returns the ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        results = service.results
        removes = asyncio.create_task(results.remove_for_ever()) if results is not None else None
        yield
        if removes is not None:
            removes.cancel()
        await service.engine.close()
        await asyncio.to_thread(service.traces.close)

    handlers: dict[Any, Any] = {
        Refused: as_refused,
        M2M100Error: as_m2m100_error,
        HTTPException: as_http_exception,
        ClientDisconnect: as_gone,
    }
    middleware = []
    origins = service.settings.cors_origins
    if origins:
        headers = ("Authorization", "Content-Type", "X-API-Key", "X-Request-ID")
        methods = ("GET", "POST")
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers
            )
        )
    app = Starlette(
        routes=[*_ROUTES], exception_handlers=handlers, middleware=middleware, lifespan=lifespan
    )
    app.router.redirect_slashes = False
    app.state.service = service
    limits = service.settings.limits
    # An upload stays in memory, as all bodies do: there may be no disk to write to.
    MultiPartParser.spool_max_size = limits.body_bytes
    # Starlette names a request's endpoint; only its newest versions name the route.
    paths: dict[object, str] = {route.endpoint: route.path for route in reversed(_ROUTES)}
    return Guard(app, limits, service.metrics, service.traces, paths, cors=bool(origins))
