"""What stands before every request: ids, limits, security headers, one log line.

An ASGI middleware, and the connections of uvicorn with limits that it lacks. Knows HTTP and no API.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from m2m100_onnx.server.logs import REQUEST_ID
from m2m100_onnx.server.metrics import Metrics
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.server.replies import as_failure, as_refused
from m2m100_onnx.server.settings import Limits
from m2m100_onnx.server.tracing import Traces

__all__ = ["Connection", "Guard"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_REQUEST_ID = re.compile(r"[\w.-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Guard:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        traces: Traces,
        paths: Mapping[object, str],
        *,
        cors: bool,
    ) -> None:
        """Wraps an application.

        Args:
            app: it.
            limits: what a request may ask for.
            metrics: counts requests.
            traces: covers each with a span.
            paths: the path of each endpoint, as metrics and logs show it.
            cors: whether pages of other origins may ask.
        """
        self._app, self._limits, self._metrics, self._paths = app, limits, metrics, paths
        self._traces = traces
        self._headers = {
            name: value
            for name, value in _HEADERS.items()
            if not (cors and name == "Cross-Origin-Resource-Policy")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token = REQUEST_ID.set(request_id)
        exchange = _Exchange(
            receive, send, self._limits, {**self._headers, "X-Request-ID": request_id}
        )
        self._metrics.in_flight.inc()
        began = time.monotonic()
        with self._traces.request(scope) as ended:
            try:
                await self._answer(scope, exchange)
            finally:
                self._metrics.in_flight.dec()
                ended(*self._record(scope, exchange.status or 499, time.monotonic() - began))
                REQUEST_ID.reset(token)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        request = Request(scope, exchange.receive)
        try:
            exchange.check(request.headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as error:
            await as_refused(request, error)(scope, exchange.receive, exchange.send)
        except Exception as error:
            _LOGGER.error("a request failed", exc_info=error)
            if exchange.status is None:
                await as_failure(request)(scope, exchange.receive, exchange.send)
            else:  # uvicorn closes the connection of an answer that is cut.
                raise _CutError from None

    def _record(self, scope: Scope, status: int, seconds: float) -> tuple[str, str, int]:
        """Counts and logs an answer; returns its route, method and status."""
        route = self._paths.get(scope.get("endpoint"), "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.answered(route, method, status, seconds)
        client = scope.get("client")
        facts = {
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "client": client[0] if client else None,
        }
        _LOGGER.info("request", extra={"facts": facts})
        return route, method, status


class _CutError(Exception):
    """An answer that had begun could not be finished."""


class _Exchange:
    """A request's messages: counts and times its body, adds headers to its answer."""

    def __init__(
        self, receive: Receive, send: Send, limits: Limits, headers: dict[str, str]
    ) -> None:
        self.status: int | None = None
        self._receive, self._send, self._limits, self._headers = receive, send, limits, headers
        self._bytes, self._complete = 0, False
        self._deadline = time.monotonic() + limits.receive_seconds

    def check(self, headers: Headers) -> None:
        """Refuses what the headers announce, if that is too much, compressed or ambiguous.

        Raises:
            Refused: so it is.
        """
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("encoding", "Content-Encoding: expected none, found a compressed body")
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may believe the one, and the second request in the body would be its secret.
            raise Refused("two_lengths", "expected one length of the body, found two")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            self._too_large()

    def _too_large(self) -> None:
        raise Refused(
            "body_too_large", f"expected a body of at most {self._limits.body_bytes} bytes"
        )

    async def receive(self) -> Message:
        """Returns the next message; after the body this waits for the client to go.

        Raises:
            Refused: the body is too large, or too slow.
        """
        if self._complete:
            return await self._receive()
        left = max(0.0, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            raise Refused("slow", "the body did not come in time") from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            self._too_large()
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a message of the answer; a client that does not read it loses its connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in self._headers.items():
                headers.setdefault(name, value)
        # A client may stop reading; what it was sent must not wait for ever.
        await asyncio.wait_for(self._send(message), self._limits.deadline)


class Connection(H11Protocol):
    """A connection of uvicorn that closes if headers are slow, or if it is one too many."""

    def __init__(self, *arguments: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins, and starts the clock."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
            return
        self._time_headers()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; the clock runs while a request's headers are incomplete."""
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends, and stops the clock."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _time_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(self._limits.receive_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()
