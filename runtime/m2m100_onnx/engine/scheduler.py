"""Many callers, one queue: sentences of several requests run in shared batches.

Knows requests, turns and threads; knows no text. There is no timer: a lone request starts at once,
and what arrives meanwhile joins at the next step, or where the graphs allow no joining, forms the
next batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.requests import Request, Ticket, fail_all
from m2m100_onnx.engine.turns import Turns
from m2m100_onnx.errors import ClosedError, OverloadedError
from m2m100_onnx.options import SearchOptions, Settings
from m2m100_onnx.process import renew_in_children

__all__ = ["Runner", "Scheduler"]

_CAPACITY = 4096
"""Sentences that may wait."""
_MEMORY = 0.9
"""How much of the last estimate of a sentence's time is in the next one."""
_FEW = 16
"""Requests that are asked before each step whether anyone waits for them."""
_REST = 5e-5
"""Seconds for each further one until all are asked again: it takes a thirtieth of that."""


class Runner(Protocol):
    """A running batch, as `Running` is."""

    @property
    def count(self) -> int:
        """Number of sentences."""
        ...

    @property
    def joins(self) -> bool:
        """Whether sentences may join while others run."""
        ...

    def group_of(self, options: SearchOptions, sentence: Sentence, /) -> Hashable:
        """Returns what sentences must have in common to run together."""
        ...

    def join(
        self, joiners: Sequence[tuple[Ticket, Sentence, SearchOptions]], *, serial: bool
    ) -> None:
        """Begins the searches of sentences of the group."""
        ...

    def step(self, *, serial: bool) -> Sequence[tuple[Ticket, Any]]:
        """Advances every sentence by one token, and returns those that ended with their results."""
        ...

    def drop(self, gone: Callable[[Ticket], bool], /) -> None:
        """Ends sentences without a result."""
        ...


class _Worker:
    """What a thread runs.

    Attributes:
        running: the batch.
        joining: what joins it next.
        charges: how much of the budget of a batch each sentence takes, those that join included.
        load: the sum of the charges.
        rows: decoder rows of the sentences.
        group: what all of them have in common.
        thread: the thread's identity.
        since: when a sentence ended last, or the first began.
    """

    def __init__(self, running: Runner) -> None:
        self.running = running
        self.joining: list[Ticket] = []
        self.charges: dict[Ticket, float] = {}
        self.load, self.rows = 0.0, 0
        self.group: Hashable = None
        self.thread: int | None = None
        self.since = time.monotonic()

    def requests(self) -> set[Request]:
        """Returns whose sentences they are."""
        return {ticket.request for ticket in self.charges}

    def accept(self, ticket: Ticket, charge: float) -> bool:
        """Takes a sentence if the budget allows; one alone is always taken."""
        if self.charges and self.load + charge > 1 + 1e-9:
            return False
        self.charges[ticket] = charge
        self.joining.append(ticket)
        self.load += charge
        self.rows += ticket.request.settings.search.rows
        return True

    def release(self, tickets: Iterable[Ticket]) -> None:
        """Lets go of sentences."""
        for ticket in tickets:
            self.charges.pop(ticket, None)
        self.load = sum(self.charges.values())
        self.rows = sum(ticket.request.settings.search.rows for ticket in self.charges)


class Scheduler:
    """Lets what waits run, in turns between the requests.

    Threads start with work and end without it, so none is left when the queue is empty.

    Attributes:
        on_step: called before each step, in its thread, with the decoder rows of the batch and the
            share of its budget that they take.
    """

    def __init__(
        self,
        running: Callable[[], Runner],
        places: Callable[[Sentence, Settings], int],
        finish: Callable[[Ticket, Any], Any],
        *,
        workers: int = 1,
        least_rows: float = 1,
        capacity: int = _CAPACITY,
    ) -> None:
        """Takes how to translate.

        Args:
            running: makes an empty batch.
            places: returns how many sentences like this one a batch holds.
            finish: makes a result of what the search found; its error is that of the request.
            workers: batches that run at the same time, each in one thread.
            least_rows: rows of each worker from which on several run side by side.
            capacity: sentences that may wait; a request that finds more is refused. A request
                that finds an empty queue is never refused.
        """
        self._new, self._places, self._finish = running, places, finish
        self._most, self._least_rows, self._capacity = workers, least_rows, capacity
        self._probe = running()
        self._seconds = 0.0  # What a sentence took lately.
        self.on_step: Callable[[int, float], object] | None = None
        self._closed = False
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forgets what waits: the parent's threads do not run in a forked process."""
        # A signal's handler may submit or close in the middle of a submission.
        self._changed = threading.Condition(threading.RLock())
        self._turns = Turns(self._probe.group_of)
        self._requests: dict[Future[dict[int, Any]], Request] = {}  # Those that are not done.
        self._done: deque[Future[dict[int, Any]]] = deque()
        self._ask_at = 0.0
        self._workers: list[_Worker] = []

    @property
    def waiting(self) -> int:
        """Number of sentences that do not run yet."""
        return self._turns.count

    @property
    def running(self) -> int:
        """Number of sentences that run."""
        with self._changed:
            return sum(len(worker.charges) for worker in self._workers)

    def submit(self, request: Request) -> Future[dict[int, Any]]:
        """Queues a request, and returns its future.

        Raises:
            ClosedError: the queue is closed.
            OverloadedError: too many sentences wait.
        """
        self._drop_gone()
        with self._changed:
            if self._closed:
                raise ClosedError("the queue is closed")
            queued = self._turns.count
            if queued and queued + len(request.sentences) > self._capacity:
                raise OverloadedError(queued * self._seconds, queued)
            if not request.sentences:
                request.future.set_result({})
                return request.future
            self._turns.add(request)
            self._requests[request.future] = request
            request.future.add_done_callback(self._done.append)
            self._call_worker()
        return request.future

    def close(self, timeout: float | None = None) -> bool:
        """Refuses new requests, and finishes what is queued.

        Args:
            timeout: seconds to wait; what is not done by then fails with `ClosedError`, and leaves
                its batch within a step. None waits without limit.

        Returns:
            Whether everything was finished.
        """
        with self._changed:
            self._closed = True
            # A future's callback, which a worker runs, may close the queue.
            me = threading.get_ident()
            done = self._changed.wait_for(
                lambda: all(worker.thread == me for worker in self._workers), timeout
            )
            left = [] if done else list(self._requests.values())
            if left:
                self._turns = Turns(self._probe.group_of)
        for request in left:  # Outside the lock: a callback of a future may call this object.
            request.fail(ClosedError("the queue was closed before the request was done"))
        return done

    # --- Threads ----------------------------------------------------------------------------------

    def _call_worker(self) -> None:
        """Starts a thread if there is something for it to run; the lock is held."""
        if len(self._workers) == self._most or not self._turns.count:
            return
        worker = _Worker(self._new())
        self._choose(worker)
        if worker.joining:
            self._workers.append(worker)
            thread = threading.Thread(target=self._work, args=(worker,), name="m2m100-queue")
            thread.start()  # It waits for the lock.
            worker.thread = thread.ident

    def _work(self, worker: _Worker) -> None:
        while True:
            self._drop_gone()
            with self._changed:
                self._choose(worker)
                if not worker.charges:
                    self._workers.remove(worker)
                    self._changed.notify_all()
                    return
                self._call_worker()
                serial = len(self._workers) > 1
            if self._join(worker, serial=serial):
                self._step(worker, serial=serial)

    def _join(self, worker: _Worker, *, serial: bool) -> bool:
        """Begins the sentences that join; returns whether any run."""
        joining, worker.joining = worker.joining, []
        try:
            if joining:
                worker.running.join(
                    [(one, one.sentence, one.request.settings.search) for one in joining],
                    serial=serial,
                )
        except BaseException as error:
            self._release(worker, joining)
            fail_all({ticket.request for ticket in joining}, error)
        return worker.running.count > 0

    def _step(self, worker: _Worker, *, serial: bool) -> None:
        """Advances a batch, and hands out what has ended."""
        if self.on_step is not None:
            self.on_step(worker.rows, worker.load)
        try:
            ended = worker.running.step(serial=serial)
            left = {request for request in worker.requests() if request.gone}
            gone = {ticket for ticket in worker.charges if ticket.request in left}
            gone -= {ticket for ticket, _ in ended}
            if gone:
                worker.running.drop(gone.__contains__)
        except BaseException as error:
            requests = worker.requests()
            self._release(worker, list(worker.charges))
            worker.running = self._new()
            fail_all(requests, error)
            return
        self._release(worker, [*gone, *(ticket for ticket, _ in ended)])
        for request in {ticket.request for ticket in gone}:
            request.expire()
        for ticket, found in ended:
            self._hand_out(ticket, found)
        self._time(worker, len(ended))

    def _hand_out(self, ticket: Ticket, found: Any) -> None:
        try:
            result = self._finish(ticket, found)
        except BaseException as error:
            ticket.request.fail(error)
        else:
            ticket.request.put(ticket.sentence, result)

    def _release(self, worker: _Worker, tickets: Sequence[Ticket]) -> None:
        with self._changed:
            worker.release(tickets)

    def _time(self, worker: _Worker, ended: int) -> None:
        """Estimates how long the queue takes for a sentence."""
        if ended:
            now = time.monotonic()
            seconds = (now - worker.since) / ended / max(1, len(self._workers))
            self._seconds = _MEMORY * (self._seconds or seconds) + (1 - _MEMORY) * seconds
            worker.since = now

    def _drop_gone(self) -> None:
        """Frees the places of requests that nobody waits for."""
        gone: list[Request] = []
        with self._changed:
            while self._done:
                self._turns.remove(self._requests.pop(self._done.popleft()))
            now = time.monotonic()
            if now >= self._ask_at:
                waiting = self._turns.requests
                gone = [request for request in waiting if request.stop.reached]
                for request in gone:
                    self._turns.remove(request)
                self._ask_at = now + _REST * max(0, len(waiting) - _FEW)
        for request in gone:  # Outside the lock: a callback of a future may call this object.
            request.expire()

    # --- Turns ------------------------------------------------------------------------------------

    def _choose(self, worker: _Worker) -> None:
        """Chooses what joins a worker: who is first leads, and others like it fill the places."""
        first = self._turns.first
        if first is None or (worker.charges and not worker.running.joins):
            return
        group = self._turns.next_group(first)
        if worker.charges and group != worker.group:
            return  # It runs out, so that the first has its turn.
        lead = self._turns.peek(first, group, None)
        assert lead is not None, "its group has sentences"
        served = self._fill(worker, group, None if worker.running.joins else len(lead.source))
        if served:
            worker.group = group
        for request in served:
            self._turns.stand_behind(request)

    def _fill(self, worker: _Worker, group: Hashable, longest: int | None) -> dict[Request, None]:
        """Lets sentences of a group join while there are places; returns whose they are.

        Who does not fit ends it: where others passed, short sentences would for ever keep the
        places that a long one needs.
        """
        most = self._most_rows(worker, group)
        served: dict[Request, None] = {}
        turn = self._turns.alike(group)
        while True:
            again: list[Request] = []
            for request in turn:  # One sentence a turn.
                sentence = self._turns.peek(request, group, longest)
                if sentence is None:
                    continue
                ticket = Ticket(request, sentence)
                if worker.rows >= most or not self._accepts(worker, ticket):
                    return served
                self._turns.take(request, group, longest)
                served[request] = None
                again.append(request)
            if not again:
                return served
            turn = iter(again)

    def _accepts(self, worker: _Worker, ticket: Ticket) -> bool:
        charge = 1 / self._places(ticket.sentence, ticket.request.settings)
        return worker.accept(ticket, charge)

    def _most_rows(self, worker: _Worker, group: Hashable) -> float:
        """Returns the rows at which a worker leaves the rest to the others.

        Few rows run best in one batch, whose steps have all cores. From `least_rows` a worker on,
        each has a batch of its own.
        """
        same = [other for other in self._workers if other.group == group]
        busy = sum(other is not worker and other.group != group for other in self._workers)
        workers = self._most - busy
        total = self._turns.rows(group) + sum(other.rows for other in same)
        if workers > 1 and total >= workers * self._least_rows:
            return -(-total // workers)
        # Another one takes it, if it can.
        taken = any(other is not worker and other.running.joins for other in same)
        return 0 if taken and not worker.charges else float("inf")
