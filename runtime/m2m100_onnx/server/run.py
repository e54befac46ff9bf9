"""Runs the application on uvicorn until a signal ends it: SIGTERM drains, SIGHUP opens anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from functools import partial

import uvicorn

from m2m100_onnx.server.app import make_app
from m2m100_onnx.server.guard import Connection
from m2m100_onnx.server.service import Service

__all__ = ["serve"]

_LOGGER = logging.getLogger("m2m100_onnx.server")


class _Server(uvicorn.Server):
    """uvicorn's server with our signals.

    Attributes:
        service: what SIGHUP opens anew, and what is not ready any more after SIGTERM.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._reloads: set[asyncio.Task[bool]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the signals; uvicorn's own would be raised again after the end."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = [signal.getsignal(number) for number in handled]
        for number in handled[:2]:
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number, handler in zip(handled, before, strict=True):
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _end(self, number: signal.Signals) -> None:
        _LOGGER.info("draining", extra={"facts": {"signal": signal.Signals(number).name}})
        self.service.engine.closing = True
        self.handle_exit(number, None)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self.service.engine.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def serve(service: Service, host: str, port: int, trusted_proxies: str) -> bool:
    """Answers requests until SIGTERM or SIGINT; returns whether it could listen.

    Args:
        service: what to serve.
        host: the address to listen on.
        port: the port.
        trusted_proxies: addresses whose `X-Forwarded-For` names the client, with commas.
    """
    limits = service.settings.limits
    config = uvicorn.Config(
        make_app(service),
        host=host,
        port=port,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type] # It is called as a class.
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
        h11_max_incomplete_event_size=32 * 1024,
        timeout_keep_alive=min(5, int(limits.receive_seconds) or 1),
        timeout_graceful_shutdown=int(limits.drain_seconds) or 1,
    )
    server = _Server(config, service)
    with contextlib.suppress(SystemExit):  # uvicorn's answer to a port that is taken.
        server.run()
    return server.started
