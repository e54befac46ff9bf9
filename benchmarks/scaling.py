"""How speed grows with one size at a time: batch, source, target, threads."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from suite import Cell, Row, Suite

CURVES: dict[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "source": (8, 32, 128, 512),
    "target": (16, 48, 128, 256),
    "threads": tuple(range(1, min(os.cpu_count() or 1, 4) + 1)),
}
FIELDS = {"batch": "batch_size", "source": "source_length", "target": "target_length"}
# Every curve goes through this point: greedy, with all threads.
BASE = Cell()
REPETITIONS = 3


def measure_curves(
    suite: Suite, curves: Mapping[str, Sequence[int]], longest: float
) -> Iterator[Row]:
    """Seconds a batch along each curve; points that would take longer than `longest` are skipped.

    What a point would take is told from the point before it, as if time grew with the size.
    """
    suite = replace(suite, repetitions=min(suite.repetitions, REPETITIONS))
    names = suite.chosen(("ours int8", "ours int4", "ctranslate2 int8"))
    with suite.running(names) as running:
        for curve, sizes in curves.items():
            if curve == "threads":
                continue
            before: dict[str, float] = {}
            last = 0
            for size in sorted(sizes):
                cell = replace(BASE, **{FIELDS[curve]: size})
                told = {name: before[name] * size / last for name in before}
                fitting = {n: e for n, e in running.items() if told.get(n, 0) <= longest}
                taken = suite.in_turn(fitting, cell)
                for name in names:
                    row: Row = {"engine": name, "curve": curve, "size": size, **vars(cell)}
                    if name in taken:
                        before[name] = statistics.median(taken[name])
                        yield {**row, "samples": taken[name]}
                    else:
                        before[name] = told[name]
                        yield {**row, "skipped": told[name]}
                last = size
    for threads in curves.get("threads", ()):
        with suite.running(names, threads) as running:
            for name, samples in suite.in_turn(running, BASE).items():
                row = {"engine": name, "curve": "threads", "size": threads}
                yield {**row, **vars(BASE), "samples": samples}
