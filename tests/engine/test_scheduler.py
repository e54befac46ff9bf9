"""The queue: turns, priorities, deadlines, cancelling, overload, shutdown, and equal results."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest

from m2m100_onnx import (
    Cancellation,
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    OverloadedError,
)
from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.requests import Request, Ticket
from m2m100_onnx.engine.scheduler import Scheduler
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.options import CallOptions, SearchOptions, Settings

WAIT = 60
TEXTS = ["Open the file.", "The file could not be found.", "Good morning.", "I like it."]


class Engine:
    """Makes batches that stand still in their first step until told.

    A result is the first token of the source; a sentence takes as many steps as its prompt ends
    with. `steps` has the first tokens of what ran in each step.
    """

    def __init__(self, *, joins: bool = False) -> None:
        self.joins = joins
        self.steps: list[list[int]] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.fail: set[int] = set()
        self.serial: list[bool] = []

    def batch(self) -> Batch:
        return Batch(self)


class Batch:
    """A running batch of an `Engine`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.joins = engine, engine.joins
        self.left: dict[Ticket, int] = {}

    @property
    def count(self) -> int:
        return len(self.left)

    def group_of(self, options: SearchOptions, sentence: Sentence) -> Any:
        return options if self.joins else (options, len(sentence.prompt))

    def join(self, joiners: Sequence[tuple[Ticket, Sentence, Any]], *, serial: bool) -> None:
        assert self.joins or not self.left
        self.engine.serial.append(serial)
        names = {sentence.source[0] for _, sentence, _ in joiners}
        if 66 in names:
            raise ValueError("cannot begin")
        self.left.update((ticket, sentence.prompt[-1]) for ticket, sentence, _ in joiners)

    def step(self, *, serial: bool) -> list[tuple[Ticket, int]]:
        names = [ticket.sentence.source[0] for ticket in self.left]
        self.engine.steps.append(names)
        self.engine.serial.append(serial)
        self.engine.entered.set()
        assert self.engine.go.wait(WAIT)
        if self.engine.fail & set(names):
            raise ValueError("broken")
        self.left = {ticket: left - 1 for ticket, left in self.left.items()}
        ended = [ticket for ticket, left in self.left.items() if left == 0]
        for ticket in ended:
            del self.left[ticket]
        return [(ticket, ticket.sentence.source[0]) for ticket in ended]

    def drop(self, gone: Callable[[Ticket], bool]) -> None:
        self.left = {ticket: left for ticket, left in self.left.items() if not gone(ticket)}


def request(*names: int, length: int = 4, steps: int = 1, **arguments: Any) -> Request:
    sentences = [Sentence(n, [name] * length, [2, steps]) for n, name in enumerate(names)]
    search = SearchOptions(max_length=100 + arguments.pop("options", 0), beam_size=1)
    return Request(sentences, Settings(search, CallOptions()), **arguments)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def held(engine: Engine, places: int = 2, **arguments: Any) -> tuple[Scheduler, Future[Any]]:
    """A queue whose only worker is busy with request 0."""
    queue = queue_of(engine, places, **arguments)
    first = queue.submit(request(0))
    assert engine.entered.wait(WAIT)
    return queue, first


def queue_of(engine: Engine, places: int = 2, **arguments: Any) -> Scheduler:
    return Scheduler(engine.batch, lambda *_: places, lambda _, found: found, **arguments)


def test_a_book_does_not_starve_a_phrase(engine: Engine) -> None:
    queue, _ = held(engine)
    book, phrase = queue.submit(request(*range(10, 18))), queue.submit(request(20))
    engine.go.set()
    assert phrase.result(WAIT) == {0: 20}
    assert book.result(WAIT) == dict(enumerate(range(10, 18)))
    assert engine.steps == [[0], [10, 20], [11, 12], [13, 14], [15, 16], [17]]


def test_turns_between_requests_that_cannot_share(engine: Engine) -> None:
    queue, _ = held(engine, 1)
    futures = [queue.submit(request(n, n + 1, options=n)) for n in (10, 20)]
    engine.go.set()
    wait(futures, WAIT)
    assert engine.steps == [[0], [10], [20], [11], [21]]


def test_priority_goes_first(engine: Engine) -> None:
    queue, _ = held(engine, 1)
    futures = [queue.submit(request(n, priority=n)) for n in (1, 3, 2)]
    engine.go.set()
    wait(futures, WAIT)
    assert engine.steps == [[0], [3], [2], [1]]


def test_a_deadline_and_a_cancellation_end_what_waits(engine: Engine) -> None:
    queue, first = held(engine)
    cancellation = Cancellation()
    late = queue.submit(request(1, stop=Stop(0.0)))
    gone = queue.submit(request(2, stop=Stop(None, cancellation)))
    cancellation.cancel()
    engine.go.set()
    assert isinstance(late.exception(WAIT), DeadlineExceeded)
    assert isinstance(gone.exception(WAIT), Cancelled)
    assert first.result(WAIT) == {0: 0}
    assert queue.close(WAIT)
    assert 2 not in [name for names in engine.steps for name in names]


@pytest.mark.parametrize("joins", [False, True])
def test_what_nobody_waits_for_leaves_its_batch_within_a_step(joins: bool) -> None:
    engine = Engine(joins=joins)
    queue = queue_of(engine)
    cancellation = Cancellation()
    first = queue.submit(request(1, steps=9))
    assert engine.entered.wait(WAIT)
    cancellation = Cancellation()
    second = queue.submit(request(2, 3, steps=9, stop=Stop(None, cancellation)))
    assert first.cancel()
    cancellation.cancel()
    engine.go.set()
    assert isinstance(second.exception(WAIT), Cancelled)
    assert queue.close(WAIT)
    assert engine.steps == [[1]]


def test_sentences_join_at_the_next_step() -> None:
    engine = Engine(joins=True)
    queue = queue_of(engine, 3)
    futures = [queue.submit(request(1, steps=4))]
    assert engine.entered.wait(WAIT)
    futures += [queue.submit(request(n, steps=2)) for n in (2, 3, 4)]
    engine.go.set()
    wait(futures, WAIT)
    assert queue.close(WAIT)
    # There are three places: the last one joins when two have ended.
    assert engine.steps == [[1], [1, 2, 3], [1, 2, 3], [1, 4], [4]]


def test_the_first_is_not_passed_by_what_can_join() -> None:
    """A batch runs out when it is the turn of a request that cannot join it."""
    engine = Engine(joins=True)
    queue = queue_of(engine, 3)
    futures = [queue.submit(request(1, steps=2))]
    assert engine.entered.wait(WAIT)
    futures += [queue.submit(request(2, options=5)), queue.submit(request(3))]
    engine.go.set()
    wait(futures, WAIT)
    assert engine.steps == [[1], [1], [2], [3]]


def test_a_long_sentence_is_not_passed_for_ever_by_short_ones() -> None:
    """It needs all places, and one of two that run would always be taken by the next."""
    engine = Engine(joins=True)
    queue = Scheduler(
        engine.batch,
        lambda sentence, _: 1 if len(sentence.source) > 4 else 2,
        lambda _, found: found,
    )
    futures = [queue.submit(request(1, steps=2))]
    assert engine.entered.wait(WAIT)
    futures += [queue.submit(request(2, steps=3)), queue.submit(request(9, length=8))]
    futures += [queue.submit(request(n, steps=3)) for n in (3, 4, 5)]
    engine.go.set()
    wait(futures, WAIT)
    assert queue.close(WAIT)
    assert engine.steps == [[1], [1, 2], [2], [2], [9], *[[3, 4]] * 3, *[[5]] * 3]


def test_what_waits_costs_a_step_nothing() -> None:
    """Neither a step nor a submission looks at all that waits, however much that is."""
    engine = Engine(joins=True)
    looks = Counter[str]()

    def places(*_: Any) -> int:
        looks["places"] += 1
        return 2

    class Asked(Stop):
        @property
        def reached(self) -> bool:
            looks["stops"] += 1
            return super().reached

    queue = Scheduler(engine.batch, places, lambda _, found: found)
    futures = [queue.submit(request(0, steps=801))]
    assert engine.entered.wait(WAIT)
    futures += [queue.submit(request(n, stop=Asked())) for n in range(1, 801)]
    assert queue.waiting == 800
    assert looks["stops"] < 100_000  # Of 320,000 pairs of a request and one before it.
    engine.go.set()
    wait(futures, WAIT)
    assert queue.close(WAIT)
    assert len(engine.steps) == 801
    assert looks["places"] < 2_000  # One that joins and one that does not fit, each step.


@pytest.mark.parametrize(("count", "sizes"), [(3, {3: 3}), (8, {4: 6})])
def test_few_rows_share_all_cores_and_many_have_a_batch_a_core(
    count: int, sizes: dict[int, int]
) -> None:
    engine = Engine(joins=True)
    queue = queue_of(engine, 100, workers=2, least_rows=4)
    future = queue.submit(request(*range(count), steps=3))
    assert engine.entered.wait(WAIT)
    engine.go.set()
    future.result(WAIT)
    assert queue.close(WAIT)
    assert Counter(map(len, engine.steps)) == sizes
    assert True in engine.serial or count == 3


def test_a_second_batch_begins_where_the_first_cannot_take_more(engine: Engine) -> None:
    queue = queue_of(engine, 1, workers=2)
    futures = [queue.submit(request(n)) for n in (1, 2, 3)]
    while len(engine.steps) < 2:
        engine.entered.wait(0.001)
    engine.go.set()
    wait(futures, WAIT)
    assert sorted(engine.steps) == [[1], [2], [3]]


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_place(engine: Engine) -> None:
    queue, _ = held(engine, capacity=2)
    waiting = queue.submit(request(1, 2))
    with pytest.raises(OverloadedError) as caught:
        queue.submit(request(3))
    assert caught.value.queued == 2
    assert caught.value.retry_after >= 0
    assert waiting.cancel()
    last = queue.submit(request(3))
    engine.go.set()
    assert last.result(WAIT) == {0: 3}


def test_an_error_reaches_the_requests_of_its_batch_alone(engine: Engine) -> None:
    queue, first = held(engine)
    engine.fail = {1}
    futures = [queue.submit(request(n)) for n in (1, 2)]
    engine.go.set()
    assert first.result(WAIT) == {0: 0}
    errors = [future.exception(WAIT) for future in futures]
    assert [str(error) for error in errors] == ["broken", "broken"]
    assert errors[0] is not errors[1]  # Whoever raises one adds to its traceback.
    assert queue.submit(request(2)).result(WAIT) == {0: 2}


def test_what_cannot_begin_leaves_the_others_alone() -> None:
    engine = Engine(joins=True)
    queue = queue_of(engine, 9)
    first = queue.submit(request(1, steps=3))
    assert engine.entered.wait(WAIT)
    second = queue.submit(request(66))
    engine.go.set()
    with pytest.raises(ValueError, match="cannot begin"):
        second.result(WAIT)
    assert first.result(WAIT) == {0: 1}
    assert queue.submit(request(66, 2)).exception(WAIT) is not None
    assert queue.submit(request(3)).result(WAIT) == {0: 3}


def test_an_error_of_a_result_is_that_of_its_request(engine: Engine) -> None:
    engine.go.set()

    def finish(_: Ticket, found: int) -> int:
        if found == 7:
            raise ValueError("no text")
        return found

    queue = Scheduler(engine.batch, lambda *_: 2, finish)
    futures = [queue.submit(request(n)) for n in (7, 8)]
    assert str(futures[0].exception(WAIT)) == "no text"
    assert futures[1].result(WAIT) == {0: 8}


def test_close_finishes_what_waits_and_refuses_what_comes(engine: Engine) -> None:
    queue, _ = held(engine)
    second = queue.submit(request(1))
    assert not queue.close(0.0)
    assert isinstance(second.exception(WAIT), ClosedError)
    with pytest.raises(ClosedError):
        queue.submit(request(2))
    engine.go.set()
    assert queue.close(WAIT)
    assert not [t for t in threading.enumerate() if t.name == "m2m100-queue" and t.is_alive()]


def test_a_forked_child_has_an_empty_queue_of_its_own(engine: Engine) -> None:
    queue, first = held(engine)
    queue.submit(request(1))
    pid = os.fork()
    if not pid:
        signal.alarm(WAIT)  # Ends a child that hangs.
        engine.go = threading.Event()
        engine.go.set()
        os._exit(not (queue.waiting == 0 and queue.submit(request(7)).result(WAIT) == {0: 7}))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    engine.go.set()
    assert first.result(WAIT) == {0: 0}
