"""Runs the application on uvicorn until a signal ends it: SIGTERM drains, SIGHUP opens anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from m2m100_onnx.heap import return_large_blocks
from m2m100_onnx.server import logs
from m2m100_onnx.server.app import make_app, make_service
from m2m100_onnx.server.engine import Served
from m2m100_onnx.server.guard import Connection
from m2m100_onnx.server.limits import SharedRate
from m2m100_onnx.server.metrics import Metrics, bury
from m2m100_onnx.server.service import Service
from m2m100_onnx.server.settings import Settings
from m2m100_onnx.server.workers import Supervisor

__all__ = ["serve", "serve_by_workers"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_BACKLOG = 2048
"""Connections that wait to be accepted."""


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


class _Worker(_Server):
    """A server that shares its socket with others, and ends with the process that started it."""

    def __init__(
        self, config: uvicorn.Config, service: Service, started: Callable[[], None]
    ) -> None:
        super().__init__(config, service)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_BACKLOG)  # For all; the one of the configuration is what one takes.
        parent = multiprocessing.parent_process()
        assert parent is not None, "a worker is started by another process"
        asyncio.get_running_loop().add_reader(parent.sentinel, self._orphaned, parent.sentinel)
        self._tell()

    def _orphaned(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        _LOGGER.error("the supervisor has died")
        self._end(signal.SIGTERM)


def _config(service: Service, trusted_proxies: str, **given: Any) -> uvicorn.Config:
    limits = service.settings.limits
    return uvicorn.Config(
        make_app(service),
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
        **given,
    )


@contextlib.contextmanager
def _own_folder() -> Iterator[Path | None]:
    """Makes a folder for files, and removes it; None where nothing can be written."""
    for place in (None, "/dev/shm"):  # A container may have nothing else that can be written.
        try:
            made = tempfile.TemporaryDirectory(prefix="m2m100-", dir=place)
        except OSError:
            continue
        with made as folder:
            yield Path(folder)
        return
    yield None


def serve(
    open_bundles: Callable[[], tuple[Served, ...]],
    settings: Settings,
    parallel: int,
    host: str,
    port: int,
    trusted_proxies: str,
) -> bool:
    """Answers requests until SIGTERM or SIGINT; returns whether it could listen.

    Args:
        open_bundles: opens the bundles.
        settings: what the operator has set.
        parallel: calls that run at the same time.
        host: the address to listen on.
        port: the port.
        trusted_proxies: addresses whose `X-Forwarded-For` names the client, with commas.

    Raises:
        M2M100Error: a bundle cannot be opened.
        OSError: a file cannot be read.
    """
    return_large_blocks()
    with _own_folder() as folder:
        files = folder if settings.files else None
        service = make_service(open_bundles, settings, parallel, folder=files)
        logs.configure()
        if settings.files and folder is None:
            _LOGGER.warning("files are not translated: there is no folder for temporary files")
        config = _config(service, trusted_proxies, host=host, port=port, backlog=_BACKLOG)
        server = _Server(config, service)
        with contextlib.suppress(SystemExit):  # uvicorn's answer to a port that is taken.
            server.run()
        return server.started


class _Duties:
    """What the supervisor of a server has its processes do."""

    def __init__(
        self,
        open_bundles: Callable[..., tuple[Served, ...]],
        settings: Settings,
        parallel: int,
        listener: socket.socket,
        folder: Path,
        trusted_proxies: str,
    ) -> None:
        self.open = open_bundles
        self._settings, self._parallel, self._proxies = settings, parallel, trusted_proxies
        self._listener, self._folder = listener, folder
        per_minute = settings.limits.requests_per_minute
        self._rate = SharedRate(per_minute) if per_minute else None
        for name in ("numbers", "files"):
            (folder / name).mkdir()

    def work(
        self, number: int, served: tuple[Served, ...], restarted: bool, started: Callable[[], None]
    ) -> None:
        """Answers requests in one process of several."""
        logs.configure(number)
        inherited: list[tuple[Served, ...]] = [served]

        def opened() -> tuple[Served, ...]:
            if not inherited:
                return self.open(graphs=True)
            for each in inherited[0]:
                each.translator.model.load()
            return inherited.pop()

        metrics = Metrics(self._folder / "numbers", str(number))
        metrics.restarts.inc(int(restarted))
        files = self._folder / "files" if self._settings.files else None
        service = make_service(
            opened, self._settings, self._parallel, metrics=metrics, rate=self._rate, folder=files
        )
        # asyncio takes as many connections at once as its backlog; with 1 the others get theirs.
        config = _config(service, self._proxies, backlog=1)
        _Worker(config, service, started).run([self._listener])

    def died(self, number: int) -> None:
        """Takes a worker out of the numbers."""
        bury(self._folder / "numbers", str(number))

    def failed(self) -> None:
        """Counts a reload that did not succeed."""
        Metrics(self._folder / "numbers", "reload").reloads.labels("failed").inc()


def serve_by_workers(
    open_bundles: Callable[..., tuple[Served, ...]],
    settings: Settings,
    count: int,
    parallel: int,
    host: str,
    port: int,
    trusted_proxies: str,
) -> bool:
    """Answers requests in several processes until SIGTERM or SIGINT; returns whether they ran.

    Args:
        open_bundles: opens the bundles, with their graphs or without (`graphs=False`).
        settings: what the operator has set.
        count: the number of processes.
        parallel: calls that run in each at the same time.
        host: the address to listen on.
        port: the port.
        trusted_proxies: addresses whose `X-Forwarded-For` names the client, with commas.

    Raises:
        M2M100Error: a bundle cannot be opened.
        OSError: a file cannot be read, or there is no folder for what the processes share.
    """
    return_large_blocks()
    logs.configure()
    try:
        listener = uvicorn.Config("", host=host, port=port, log_config=None).bind_socket()
    except SystemExit:  # uvicorn's answer to a port that is taken.
        return False
    with listener, _own_folder() as folder:
        if folder is None:
            raise OSError("expected a folder for temporary files, found none")
        duties = _Duties(open_bundles, settings, parallel, listener, folder, trusted_proxies)
        supervisor = Supervisor(duties, count, listener, settings.limits.drain_seconds)
        return supervisor.run()
