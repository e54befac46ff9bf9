"""The process that is measured: opens one engine, translates, and says how long that took.

A worker reads a JSON request a line on standard input and answers a JSON line on standard output:

    {"do": "load", ...}        -> {"seconds": s}
    {"do": "translate", "batches": [batch, ...], "options": {...}, "passes": n, "concurrency": n}
                               -> {"calls": [[began, ended, tokens], ...]}
    {"do": "memory"}           -> {"resident": bytes, "private": bytes, ...}

It answers {"error": message} where the engine refuses a request. It is a process of its own, so
that its start is that of a fresh process and its memory that of one engine.

An engine is a function that opens a model with the arguments of `load`. It returns a function that
translates a batch with options. This file knows one engine, `Translator` on texts. `benchmarks/`
serves others by the same loop, from environments without onnxruntime and numpy. So this file
imports little of the standard library and nothing else until an engine opens its model: the start
of the process is measured. `client.py` is the other end.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m2m100_onnx.errors import M2M100Error

__all__ = ["GIVEN_TOKENS", "Call", "Open", "Translate", "memory", "serve", "timed_calls"]

GIVEN_TOKENS = 2
"""Start and language token: they have positions, and are given and not generated."""

Translate = Callable[..., int]
"""`translate(batch, **options)`: returns the number of tokens that the best hypotheses have."""
Open = Callable[..., Translate]
"""`open(**arguments)`: opens a model."""


class Call(NamedTuple):
    """One call of an engine: when it began and ended, in seconds, and the tokens it generated."""

    began: float
    ended: float
    tokens: int


def timed_calls(
    translate: Callable[[Any], int],
    batches: Sequence[Any],
    *,
    passes: int = 1,
    concurrency: int = 1,
) -> list[Call]:
    """Translates all batches `passes` times in each of `concurrency` threads that begin together.

    The first thread is the caller's.
    """
    ready = threading.Barrier(concurrency)

    def work() -> list[Call]:
        calls = []
        ready.wait()
        for batch in [*batches] * passes:
            began = time.perf_counter()
            tokens = translate(batch)
            calls.append(Call(began, time.perf_counter(), tokens))
        return calls

    if concurrency == 1:
        return work()
    from m2m100_onnx.process import side_by_side

    return [call for calls in side_by_side(*[work] * concurrency) for call in calls]


def memory(process: int | str = "self") -> dict[str, int | None]:
    """Returns a process's memory in bytes by kind, each None where Linux's /proc is missing.

    `private` is anonymous memory, which only processes forked from each other share. `mapped` is
    the rest of what is `resident`, above all weights in files: the page cache holds them once for
    all processes. `proportional` divides a page by the processes that have it. `peak` is the most
    that was ever resident. A GPU's memory is in none of them.
    """
    try:
        rollup = _kibibytes(Path(f"/proc/{process}/smaps_rollup"))
        return {
            "resident": rollup["Rss"],
            "proportional": rollup["Pss"],
            "private": rollup["Anonymous"],
            "mapped": rollup["Rss"] - rollup["Anonymous"],
            "peak": _kibibytes(Path(f"/proc/{process}/status"))["VmHWM"],
        }
    except (OSError, KeyError):
        return dict.fromkeys(("resident", "proportional", "private", "mapped", "peak"))


def _kibibytes(path: Path) -> dict[str, int]:
    """Returns the entries of a /proc file that are given in kB, in bytes."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def open_translator(
    bundle: str, translator: Mapping[str, Any], languages: Mapping[str, str]
) -> Translate:
    """Opens a bundle; a batch is a list of texts, and its call is `translate_batch`."""
    from m2m100_onnx.translator import Translator

    opened = Translator(bundle, **translator)
    source, target = languages["source_lang"], languages["target_lang"]

    def translate(batch: list[str], **options: Any) -> int:
        found = opened.translate_batch(batch, source_lang=source, target_lang=target, **options)
        return sum(max(0, len(each.tokens) - GIVEN_TOKENS) for each in found)

    return translate


def serve(open_model: Open) -> None:
    """Answers requests for an engine until standard input ends."""
    answers = sys.stdout
    # A library that prints would break the protocol.
    sys.stdout = sys.stderr
    translate: Translate | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "load":
                started = time.perf_counter()
                translate = open_model(**request)
                answer: dict[str, Any] = {"seconds": time.perf_counter() - started}
            elif do == "translate" and translate:
                answer = {"calls": _translate(translate, **request)}
            elif do == "memory":
                answer = dict(memory())
            else:
                answer = {"error": f"expected load, translate (after load) or memory, found {do}"}
        except M2M100Error as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _translate(
    translate: Translate, batches: list[Any], options: Mapping[str, Any], **counts: int
) -> list[Call]:
    return timed_calls(lambda batch: translate(batch, **options), batches, **counts)


if __name__ == "__main__":
    serve(open_translator)
