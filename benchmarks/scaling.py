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
    """Yields the seconds a batch along each curve; skips points that would take over `longest`.

    The line through the two points before it predicts what a point would take.
    """
    suite = replace(suite, repetitions=min(suite.repetitions, REPETITIONS))
    names = suite.chosen(("ours int8", "ours int4", "ctranslate2 int8"))
    with suite.running(names) as running:
        for curve, sizes in curves.items():
            if curve == "threads":
                continue
            points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
            for size in sorted(sizes):
                cell = replace(BASE, **{FIELDS[curve]: size})
                predicted = {name: _predicted(points[name], size) for name in names}
                fitting = {n: engine for n, engine in running.items() if predicted[n] <= longest}
                taken = suite.in_turn(fitting, cell)
                for name in names:
                    row: Row = {"engine": name, "curve": curve, "size": size, **vars(cell)}
                    if name in taken:
                        points[name].append((size, statistics.median(taken[name])))
                        yield {**row, "samples": taken[name]}
                    else:
                        yield {**row, "skipped": predicted[name]}
    for threads in curves.get("threads", ()):
        with suite.running(names, threads) as running:
            for name, samples in suite.in_turn(running, BASE).items():
                row = {"engine": name, "curve": "threads", "size": threads}
                yield {**row, **vars(BASE), "samples": samples}


def _predicted(points: Sequence[tuple[int, float]], size: int) -> float:
    """Returns the seconds that the next point should take; 0 where too few points are known."""
    if len(points) < 2:
        return 0.0
    (size0, seconds0), (size1, seconds1) = points[-2:]
    slope = max(0.0, (seconds1 - seconds0) / (size1 - size0))
    return seconds1 + slope * (size - size1)
