"""The process that is measured: it opens one bundle, translates, and says how long that took.

Reads one JSON request from standard input; writes one JSON line when the first token is there and,
if it is to go on, one with what was measured. A process of its own, so that load time is that of a
fresh process and memory that of one configuration.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from m2m100_onnx.benchmark_plan import GIVEN_TOKENS
from m2m100_onnx.errors import M2M100Error
from m2m100_onnx.translator import Translation, Translator

__all__ = ["Call", "main", "memory", "timed_calls"]


class Call(NamedTuple):
    """One translate call: when it began and ended, in seconds, and the tokens it generated."""

    began: float
    ended: float
    tokens: int


def timed_calls(
    translate: Callable[[list[str]], Sequence[Translation]],
    batches: list[list[str]],
    *,
    passes: int,
    concurrency: int,
) -> list[Call]:
    """Translates all batches `passes` times in each of `concurrency` threads, begun together."""
    ready = threading.Barrier(concurrency)

    def work(_: int) -> list[Call]:
        calls = []
        ready.wait()
        for batch in batches * passes:
            began = time.perf_counter()
            found = translate(batch)
            ended = time.perf_counter()
            tokens = sum(max(0, len(each.tokens) - GIVEN_TOKENS) for each in found)
            calls.append(Call(began, ended, tokens))
        return calls

    with ThreadPoolExecutor(concurrency) as threads:
        return [call for calls in threads.map(work, range(concurrency)) for call in calls]


def memory() -> dict[str, int | None]:
    """Bytes of this process now, and the most it ever had resident; None where /proc is missing.

    `private` is anonymous memory, which no other process can share. `shared` is the rest of what is
    resident, above all mapped weights: the page cache holds them once for all processes. A GPU's
    memory is in none of them.
    """
    try:
        rollup = _kibibytes(Path("/proc/self/smaps_rollup"))
        peak = _kibibytes(Path("/proc/self/status"))["VmHWM"]
        private = rollup["Anonymous"]
        return {"private": private, "shared": rollup["Rss"] - private, "peak": peak}
    except (OSError, KeyError):
        return dict.fromkeys(("private", "shared", "peak"))


def _kibibytes(path: Path) -> dict[str, int]:
    """The entries of a /proc file that are given in kB, in bytes."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def _answer(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    translator = Translator(request["bundle"], **request["translator"])

    def calls(options: str, passes: int) -> list[Call]:
        return timed_calls(
            lambda batch: translator.translate_batch(
                batch, **request["languages"], **request[options]
            ),
            request["batches"],
            passes=passes,
            concurrency=request["concurrency"],
        )

    first = request["batches"][0][:1]
    translator.translate_batch(first, **request["languages"], **request["first_token"])
    say({"loaded": True})
    if not request["measure"]:
        return
    calls("whole", request["warmup"])
    first_token = calls("first_token", request["repetitions"])
    whole = calls("whole", request["repetitions"])
    say({"first_token": first_token, "whole": whole, "memory": memory()})


def main() -> None:
    """Answers the request on standard input."""
    answers = sys.stdout
    # A library that prints would break the protocol.
    sys.stdout = sys.stderr

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        _answer(json.loads(sys.stdin.read()), say)
    except M2M100Error as error:
        say({"error": str(error)})


if __name__ == "__main__":
    main()
