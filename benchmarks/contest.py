"""One cell of the comparison: every engine at its best setting, in turns.

Knows how engines are compared, and not which: neither models nor files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ctranslate2_settings import Setting, has_avx512, search
from m2m100_onnx.cli.benchmark.client import Worker
from m2m100_onnx.errors import InferenceError
from suite import Row, Suite

PEER = "ctranslate2 int8"
# A setting of CTranslate2 that takes fewer seconds is tried twice.
TWICE = 3.0


@dataclass(frozen=True)
class Contestant:
    """An engine, and the setting of CTranslate2."""

    name: str
    setting: Setting | None = None


@dataclass(frozen=True)
class Task:
    """What is translated.

    Attributes:
        name: of the task.
        request: to an engine, without the setting's options.
        sentences: of the request.
        settings: of CTranslate2's threads, which are tried.
        tokens: that each engine must give, or None for natural lengths.
        wake: a short request before each turn.
    """

    name: str
    request: Row
    sentences: int
    settings: Sequence[Setting]
    tokens: int | None
    wake: Row


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        repetitions: of a cell at most, after a warm-up.
        budget: seconds of an engine's repetitions in a task.
        finalists: of CTranslate2's settings that take turns with the others.
    """

    repetitions: int
    budget: float
    finalists: int


@dataclass
class Arena:
    """Processes of engines, each started when it is first needed.

    Attributes:
        suite: has the models.
        script: serves the engines.
        opening: further arguments of `load`, by the first word of an engine's name.
    """

    suite: Suite
    script: str = "engines.py"
    opening: Callable[[str], Mapping[str, Any]] = lambda _: {}
    _running: dict[Contestant, Worker] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.clear()
        self._stack.close()

    def ask(self, contestant: Contestant, request: Row, sentences: int) -> tuple[float, int]:
        """Returns the seconds and the tokens of a request."""
        options = dict(request["options"])
        if contestant.setting:
            options["max_batch_size"] = contestant.setting.most(sentences)
        answer = self._worker(contestant).ask(**{**request, "options": options})
        ((began, ended, tokens),) = answer["calls"]
        return ended - began, tokens

    def _worker(self, contestant: Contestant) -> Worker:
        setting = contestant.setting
        key = Contestant(contestant.name, setting.process if setting else None)
        if key not in self._running:
            variables = setting.variables if setting else {}
            started = self.suite.start(key.name, variables, self.script)
            worker = self._stack.enter_context(started)
            loading = setting.loading if setting else {"threads": None}
            folder = str(self.suite.folder(key.name))
            worker.ask("load", folder=folder, **{**loading, **self.opening(key.name)})
            self._running[key] = worker
        return self._running[key]


def run(arena: Arena, task: Task, names: Sequence[str], effort: Effort) -> Row:
    """Returns the samples of a cell, and what CTranslate2's settings took.

    The first samples of all engines are of one time, and so are the second ones. A call of an
    engine that would use up its budget is made once, and then the warm-up is its sample.
    """
    probes: dict[Setting, float] = {}
    if PEER in names:
        probes = _probe(arena, task)
    finalists = list(probes)[: effort.finalists]
    contestants = [Contestant(name) for name in names if name != PEER]
    contestants += [Contestant(PEER, setting) for setting in finalists]
    failed: dict[Contestant, str] = {}
    warm: dict[Contestant, float] = {}
    tokens: dict[Contestant, int] = {}
    for one in contestants:
        if found := _attempt(arena, one, task, failed):
            warm[one], tokens[one] = found
    samples: dict[Contestant, list[float]] = {one: [] for one in warm}
    for one, repetition in _turns(warm, effort):
        if one in failed:
            continue
        if repetition is None:
            samples[one].append(warm[one])
        elif found := _attempt(arena, one, task, failed):
            samples[one].append(found[0])
    return {
        "cell": task.name,
        "probes": {setting.label: seconds for setting, seconds in probes.items()},
        "engines": [_row(one, samples[one], tokens[one]) for one in warm if one not in failed],
        "failed": {one.name: text for one, text in failed.items()},
    }


def _attempt(
    arena: Arena, one: Contestant, task: Task, failed: dict[Contestant, str]
) -> tuple[float, int] | None:
    """Returns the seconds and the tokens; None if a peer fails, which costs no other its turn."""
    try:
        return _timed(arena, one, task)
    except (RuntimeError, InferenceError) as error:
        if one.name.startswith("ours"):
            raise
        failed[one] = str(error)
        return None


def _row(one: Contestant, samples: list[float], tokens: int) -> Row:
    setting = {"setting": one.setting.label} if one.setting else {}
    return {"engine": one.name, **setting, "samples": samples, "tokens": tokens}


def _turns(
    warm: Mapping[Contestant, float], effort: Effort
) -> Iterator[tuple[Contestant, int | None]]:
    """Yields whose turn it is, and which; None where the warm-up was the only one."""
    counts = {
        one: min(effort.repetitions, int(effort.budget / max(seconds, 1e-9)))
        for one, seconds in warm.items()
    }
    yield from ((one, None) for one, count in counts.items() if not count)
    for repetition in range(effort.repetitions):
        yield from ((one, repetition) for one, count in counts.items() if repetition < count)


def _probe(arena: Arena, task: Task) -> dict[Setting, float]:
    """Returns the seconds of CTranslate2's settings for a cell, the fastest first.

    A setting that fails, such as an instruction set that its build lacks, is left out. The first
    call of a process has costs of its own, which count where calls are short.
    """

    def measure(setting: Setting) -> float:
        first = _attempt(arena, Contestant(PEER, setting), task, {})
        if not first or first[0] > TWICE:
            return first[0] if first else math.inf
        again = _attempt(arena, Contestant(PEER, setting), task, {})
        return min(first[0], again[0]) if again else math.inf

    found = search(task.settings, measure, wide=has_avx512())
    return {setting: seconds for setting, seconds in found.items() if seconds < math.inf}


def _timed(arena: Arena, one: Contestant, task: Task) -> tuple[float, int]:
    arena.ask(one, task.wake, 1)
    seconds, tokens = arena.ask(one, task.request, task.sentences)
    if task.tokens is not None and tokens != task.tokens:
        raise RuntimeError(f"expected {task.tokens} tokens of {one.name}, found {tokens}")
    return seconds, tokens
