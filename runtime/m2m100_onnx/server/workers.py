"""Several processes that answer on one socket, and the one that keeps them running.

The supervisor reads vocabularies and opens no graph: each worker opens its own after the fork, over
weights that the page cache has once. Knows processes and signals; knows no HTTP.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Protocol

from m2m100_onnx.errors import M2M100Error
from m2m100_onnx.server.engine import Served

__all__ = ["Supervisor"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_FORK = multiprocessing.get_context("fork")
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LONGEST_PAUSE = 10.0
"""Seconds between two attempts to start a worker that does not get ready."""
_PATIENCE = 10.0
"""Seconds that a worker gets to end after the time in which it drains."""


class Duties(Protocol):
    """What a supervisor's processes do."""

    def open(self, *, graphs: bool) -> tuple[Served, ...]:
        """Opens the bundles; without their graphs, nothing is open that a fork would not keep.

        Raises:
            M2M100Error: a bundle cannot be opened.
            OSError: a file cannot be read.
        """

    def work(
        self, number: int, served: tuple[Served, ...], restarted: bool, started: Callable[[], None]
    ) -> None:
        """Answers requests until SIGTERM; in a process of its own.

        Args:
            number: of the worker.
            served: the bundles, without graphs.
            restarted: whether it takes the place of one that died.
            started: called once requests are answered.
        """

    def died(self, number: int) -> None:
        """Cleans up what a worker left that died."""

    def failed(self) -> None:
        """Counts a reload that did not succeed; in a process of its own."""


@dataclass
class _Worker:
    """A process that answers.

    Attributes:
        number: its place, which the one that takes it inherits.
        process: it.
        messages: None from it once it answers, or the error for which it does not.
        served: the bundles that it was told to open.
        ready: whether it answers.
        error: why it does not.
    """

    number: int
    process: ForkProcess
    messages: Connection
    served: tuple[Served, ...]
    ready: bool = False
    error: Exception | None = None

    def open_anew(self, served: tuple[Served, ...]) -> None:
        """Makes it switch to the bundles of now."""
        assert self.process.pid is not None, "it was started"
        os.kill(self.process.pid, signal.SIGHUP)
        self.served = served


@dataclass
class _Pause:
    """When a worker is to be started again.

    Attributes:
        ends: then.
        failures: attempts in a row after which it was not ready.
    """

    ends: float = 0.0
    failures: int = 0


class Supervisor:
    """Starts workers, starts those anew that die, and passes signals on."""

    def __init__(
        self, duties: Duties, count: int, listener: socket.socket, drain_seconds: float
    ) -> None:
        """Takes its parts.

        Args:
            duties: what the processes do.
            count: the number of workers.
            listener: the socket on which they answer, which is closed once the server ends.
            drain_seconds: that running requests get then.
        """
        self._duties, self._count, self._listener = duties, count, listener
        self._drain_seconds = drain_seconds
        self._workers: dict[int, _Worker] = {}
        self._pauses = {number: _Pause() for number in range(count)}
        self._trial: ForkProcess | None = None
        self._signals: list[int] = []
        self._closing = self._wants_reload = self._has_served = False
        self._killing = 0.0
        self._served: tuple[Served, ...] = ()

    def run(self) -> bool:
        """Keeps the workers running until SIGTERM or SIGINT; returns whether they ever ran.

        Raises:
            M2M100Error: a bundle cannot be opened.
            OSError: a file cannot be read.
        """
        self._served = self._duties.open(graphs=False)
        gc.freeze()  # A collection in a worker would copy the pages of what it shares.
        with self._noted() as woken:
            try:
                while self._workers or not self._closing:
                    self._start_missing()
                    self._await(woken)
                    while self._signals:
                        self._obey(self._signals.pop(0))
                    if not self._look() and not self._has_served:
                        return False
            finally:
                self._kill()
        return True

    @contextlib.contextmanager
    def _noted(self) -> Iterator[socket.socket]:
        """Notes signals; what it yields can be read when one has come."""
        reader, writer = socket.socketpair()
        with reader, writer:
            for each in (reader, writer):
                each.setblocking(False)
            before = {
                number: signal.signal(number, lambda number, _: self._signals.append(number))
                for number in _HANDLED
            }
            woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(woken)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _fork(self, process: ForkProcess) -> None:
        """Starts a process, which gets no signal before it has handlers of its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _start_missing(self) -> None:
        now = time.monotonic()
        for number, pause in self._pauses.items():
            if number in self._workers or self._closing or pause.ends > now:
                continue
            receiver, sender = _FORK.Pipe(duplex=False)
            process = _FORK.Process(
                target=self._work, args=(number, sender), name=f"worker {number}"
            )
            self._fork(process)
            sender.close()
            self._workers[number] = _Worker(number, process, receiver, self._served)

    def _work(self, number: int, sender: Connection) -> None:
        """Is a worker."""
        _forget_signals()
        try:
            self._duties.work(number, self._served, self._has_served, lambda: sender.send(None))
        except (M2M100Error, OSError) as error:
            sender.send(error)
            raise SystemExit(1) from None
        except Exception as error:
            _LOGGER.error("a worker failed", exc_info=error)
            raise SystemExit(1) from None

    def _await(self, woken: socket.socket) -> None:
        """Waits for a signal, for what a process says or for its end, or for a pause's end."""
        awaited: list[object] = [woken]
        for worker in self._workers.values():
            awaited.append(worker.process.sentinel)
            if not worker.ready and worker.error is None:
                awaited.append(worker.messages)
        if self._trial is not None:
            awaited.append(self._trial.sentinel)
        times = [p.ends for n, p in self._pauses.items() if n not in self._workers]
        if self._closing:
            times = [self._killing]
        left = min(times, default=None)
        wait(awaited, None if left is None else max(0.0, left - time.monotonic()))  # type: ignore[arg-type]
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096)

    def _look(self) -> bool:
        """Takes what the processes say, and who has ended; returns whether none has failed."""
        fine = True
        for worker in [*self._workers.values()]:
            if not worker.ready and worker.messages.poll():
                self._hear(worker)
            if worker.process.exitcode is not None:
                self._bury(worker)
                fine = self._closing
        self._has_served = self._has_served or (
            len(self._workers) == self._count and all(w.ready for w in self._workers.values())
        )
        trial = self._trial
        if trial is not None and trial.exitcode is not None:
            self._trial = None
            trial.join()
            if trial.exitcode == 0:
                self._switch()
            if self._wants_reload:
                self._reload()
        if self._closing and time.monotonic() > self._killing:
            self._kill()
        return fine

    def _hear(self, worker: _Worker) -> None:
        with contextlib.suppress(EOFError):
            error = worker.messages.recv()
            if error is None:
                worker.ready = True
                if worker.served is not self._served:  # They have changed while it started.
                    worker.open_anew(self._served)
                self._pauses[worker.number] = _Pause()
            else:
                worker.error = error

    def _bury(self, worker: _Worker) -> None:
        """Lets go of a worker that has ended, and says when another is started.

        Raises:
            M2M100Error: it was to be one of the first, and a bundle cannot be opened.
            OSError: it was to be one of the first, and a file cannot be read.
        """
        worker.process.join()
        worker.messages.close()
        del self._workers[worker.number]
        self._duties.died(worker.number)
        if self._closing:
            return
        if worker.error is not None and not self._has_served:
            raise worker.error
        facts = {"worker": worker.number, "status": worker.process.exitcode}
        said = f": {worker.error}" if worker.error is not None else ""
        _LOGGER.error("a worker has ended%s", said, extra={"facts": facts})
        if not worker.ready:
            pause = self._pauses[worker.number]
            pause.failures += 1
            pause.ends = time.monotonic() + min(_LONGEST_PAUSE, 0.25 * 2**pause.failures)

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
            return
        if self._closing and number == signal.SIGINT:
            self._kill()
            return
        if not self._closing:
            _LOGGER.info("draining", extra={"facts": {"signal": signal.Signals(number).name}})
            self._closing = True
            self._killing = time.monotonic() + self._drain_seconds + _PATIENCE
            self._listener.close()
            if self._trial is not None:
                self._trial.kill()
            for worker in self._workers.values():
                worker.process.terminate()

    def _reload(self) -> None:
        """Tries the bundles in a process of its own; all workers switch if it can open them."""
        self._wants_reload = self._trial is not None
        if self._wants_reload or self._closing:
            return
        self._trial = _FORK.Process(target=self._try, name="reload")
        self._fork(self._trial)

    def _try(self) -> None:
        _forget_signals()
        try:
            self._duties.open(graphs=True)
        except (M2M100Error, OSError) as error:
            self._duties.failed()
            _LOGGER.error("the bundles stay as they were: %s", error)
            raise SystemExit(1) from None

    def _switch(self) -> None:
        """Makes the workers open the bundles anew, and those that are started from now on."""
        try:
            fresh = self._duties.open(graphs=False)
        except (M2M100Error, OSError) as error:
            _LOGGER.error("the bundles stay as they were: %s", error)
            return
        old, self._served = self._served, fresh
        for served in old:
            served.translator.close()
        gc.freeze()
        for worker in self._workers.values():
            if worker.ready:
                worker.open_anew(fresh)

    def _kill(self) -> None:
        """Ends all processes at once."""
        for process in (*(w.process for w in self._workers.values()), self._trial):
            if process is not None:
                process.kill()
                process.join()


def _forget_signals() -> None:
    """Lets signals end this process until it has handlers of its own; a reload waits for those."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
