"""Spans of OpenTelemetry: one of each request, and within it one of each call of a model.

Standard `OTEL_*` variables say where spans go and how many, as in every program. No span has a
text, a key, an address or a path, which may be a secret link: routes, languages and numbers alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from starlette.types import Scope

from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.errors import DependencyError, InvalidInputError
from m2m100_onnx.server.logs import TRACE

__all__ = ["Traces"]

_UNTRACED = ("/health", "/v2/health", "/metrics")
"""What machines ask for every few seconds."""
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Traces:
    """Begins spans, or does nothing where traces are off."""

    def __init__(self, on: bool) -> None:
        """Reads the variables. The exporter's thread is this process's own, so begin after a fork.

        Raises:
            DependencyError: traces are on, and OpenTelemetry is not installed.
            InvalidInputError: the variables ask for another protocol than OTLP over HTTP.
        """
        self._provider: Any = None
        if on:
            self._api = _module("opentelemetry.trace")
            self._propagate = _module("opentelemetry.propagate")
            self._provider = _provider()
            self._tracer = self._provider.get_tracer("m2m100_onnx")

    @contextlib.contextmanager
    def request(self, scope: Scope) -> Iterator[Callable[[str, str, int], None]]:
        """Covers a request, within the span that its `traceparent` names.

        Yields:
            Takes route, method and status, which are known at the end.
        """
        if self._provider is None or scope["path"].startswith(_UNTRACED):
            yield lambda _route, _method, _status: None
            return
        # The propagators of OTEL_PROPAGATORS know which headers they want.
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        span = self._tracer.start_span(
            "request",
            context=self._propagate.extract(headers),
            kind=self._api.SpanKind.SERVER,
            attributes={"url.scheme": scope["scheme"]},
        )
        context = span.get_span_context()
        token = TRACE.set(
            {
                "trace_id": self._api.format_trace_id(context.trace_id),
                "span_id": self._api.format_span_id(context.span_id),
            }
        )

        def ended(route: str, method: str, status: int) -> None:
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.route": route,
                    "http.request.method": method,
                    "http.response.status_code": status,
                }
            )
            if status >= 500:
                span.set_status(self._api.StatusCode.ERROR)

        try:
            with self._api.use_span(span, record_exception=False, set_status_on_exception=False):
                yield ended
        finally:
            span.end()
            TRACE.reset(token)

    @contextlib.contextmanager
    def call(
        self, name: str, model: str, source_lang: str, target_lang: str, stats: Stats
    ) -> Iterator[None]:
        """Covers a call of a model, whose numbers become attributes at its end.

        Args:
            name: of the span.
            model: the bundle's name.
            source_lang: the texts' language.
            target_lang: the language that they are translated into.
            stats: what the call did, once it has ended.
        """
        if self._provider is None:
            yield
            return
        # It is not made the current one: a stream ends in another context than it began in.
        span = self._tracer.start_span(
            name,
            attributes={
                "m2m100.model": model,
                "m2m100.source_lang": source_lang,
                "m2m100.target_lang": target_lang,
            },
        )
        try:
            yield
        except BaseException as error:
            # A message may quote a text.
            span.set_status(self._api.StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            for spec in fields(stats):
                span.set_attribute(f"m2m100.{spec.name}", getattr(stats, spec.name))
            span.end()

    def close(self) -> None:
        """Sends what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"traces need {error.name}; run `pip install 'm2m100-onnx[traces]'`"
        ) from error


def _provider() -> Any:
    """Returns what sends spans as the variables say."""
    for name in _PROTOCOLS:
        found = os.environ.get(name, "http/protobuf")
        if found != "http/protobuf":
            raise InvalidInputError(f"{name}: expected http/protobuf, found {found!r}")
    sdk = _module("opentelemetry.sdk.trace")
    export = _module("opentelemetry.sdk.trace.export")
    otlp = _module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    resources = _module("opentelemetry.sdk.resources")
    # What the variables say of the service comes last, and so has the last word.
    named = resources.Resource({"service.name": "m2m100"})
    said = resources.OTELResourceDetector().detect()
    resource = resources.Resource.create().merge(named).merge(said)
    provider = sdk.TracerProvider(resource=resource)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider
