"""Compares two states of the runtime in pairs: the same bundle, by turns, each in its own process.

    python benchmarks/pair.py BEFORE AFTER BUNDLE [--cells 1x1,1x5,8x1,8x5]

BEFORE and AFTER are checkouts. Both run on the packages of this interpreter, each with a weights
cache of its own that a first process fills. A ratio is AFTER's time over BEFORE's, the median of
pairs that were taken side by side. With `--before-bundle` BEFORE opens another bundle, and with
`--options` AFTER's translator has other options; tokens may then differ. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from m2m100_onnx.cli.benchmark.client import Worker

# It speaks the protocol of the benchmark's worker, in terms of what both states have: `Translator`.
CHILD = """
import json, sys, time
from m2m100_onnx import Translator
for line in sys.stdin:
    request = json.loads(line)
    started = time.perf_counter()
    if request.pop("do") == "load":
        translator, tokens = Translator(**request), None
    else:
        tokens = [result.tokens for result in translator.translate_batch(**request)]
    seconds = time.perf_counter() - started
    rows = (line.split() for line in open("/proc/self/smaps_rollup"))
    sizes = {row[0]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}
    answer = {"seconds": seconds, "private": sizes["Anonymous:"], "tokens": tokens}
    print(json.dumps(answer), flush=True)
"""


def start(checkout: Path, bundle: Path, options: dict[str, Any], cache: Path) -> Worker:
    """Starts a process with one state of the runtime, and opens the bundle."""
    variables = {**os.environ, "PYTHONPATH": str(checkout / "runtime")}
    variables |= {"M2M100_ONNX_CACHE": str(cache), "ORT_DISABLE_TELEMETRY": "1"}
    worker = Worker(str(checkout), [sys.executable, "-c", CHILD], variables)
    worker.ask("load", bundle=str(bundle), **options)
    return worker


def request(batch_size: int, beam_size: int, tokens: int) -> dict[str, Any]:
    """Returns arguments of `translate_batch`: short texts, and exactly `tokens` tokens for each."""
    words = ["file", "open", "window", "save", "close", "folder", "name", "error", "list", "menu"]
    chance = random.Random(0)
    texts = [" ".join(chance.choices(words, k=24)) for _ in range(batch_size)]
    lengths = {"min_length": tokens + 2, "max_length": tokens + 2}
    languages = {"source_lang": "en", "target_lang": "fr"}
    return {"texts": texts, "beam_size": beam_size, **lengths, **languages}


def spread(ratios: Sequence[float]) -> str:
    """Returns median, least and most."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


def row(name: str, before: Sequence[float], after: Sequence[float], unit: str) -> str:
    """Returns a row of the table; the i-th numbers of both are a pair."""
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    medians = (statistics.median(numbers) for numbers in (before, after))
    shown = " | ".join(f"{median:,.3f} {unit}" for median in medians)
    return f"| {name} | {shown} | {spread(ratios)} |"


def turns(repetitions: int) -> Iterator[int]:
    """Yields 0 and 1, before and after, the first of a pair by turns."""
    for repetition in range(repetitions):
        yield from (0, 1) if repetition % 2 else (1, 0)


def measure(
    sides: Sequence[tuple[Path, Path, dict[str, Any]]], cells: str, repetitions: int
) -> None:
    """Prints the table; a side is a checkout, a bundle, and options of its translator."""
    print("| | before | after | after / before |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        places = [(*side, Path(work, str(number))) for number, side in enumerate(sides)]
        workers = [stack.enter_context(start(*place)) for place in places]
        for cell in cells.split(","):
            asked = request(*map(int, cell.split("x")), 48)
            first = [worker.ask("translate", **asked)["tokens"] for worker in workers]
            if first[0] != first[1] and sides[0][1:] == sides[1][1:]:
                raise SystemExit(f"{cell}: before and after give other tokens")
            taken: list[list[float]] = [[], []]
            for side in turns(repetitions):
                taken[side].append(workers[side].ask("translate", **asked)["seconds"])
            print(row(f"B={cell.replace('x', ' beam ')}", *taken, "s"), flush=True)
        starts: list[list[float]] = [[], []]
        private: list[list[float]] = [[], []]
        for side in turns(repetitions):
            began = time.perf_counter()
            with start(*places[side]) as worker:
                worker.ask("translate", **request(1, 1, 1))
                starts[side].append(time.perf_counter() - began)
                used = worker.ask("translate", **request(1, 5, 48))["private"]
                private[side].append(used / 2**20)
        print(row("start of a process to its first token", *starts, "s"))
        print(row("private memory after a translation with beam 5", *private, "MiB"))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--before-bundle", type=Path, help="of BEFORE, in place of BUNDLE")
    parser.add_argument("--options", type=json.loads, default={}, help="of AFTER, as JSON")
    parser.add_argument("--cells", default="1x1,1x5,8x1,8x5", help="batch x beam")
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    given = (
        (arguments.before, arguments.before_bundle or arguments.bundle, {}),
        (arguments.after, arguments.bundle, arguments.options),
    )
    sides = [(path.resolve(), bundle.resolve(), options) for path, bundle, options in given]
    measure(sides, arguments.cells, arguments.repetitions)


if __name__ == "__main__":
    main()
