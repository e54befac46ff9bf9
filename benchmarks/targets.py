"""The targets for speed and memory, and whether the result files reach them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Data = dict[str, Any]

PEER = "ctranslate2 int8"
# Batch, beam, source, target.
SHORT_GREEDY, SHORT_BEAM = (1, 1, 32, 48), (1, 5, 32, 48)
SPEEDS = (
    ("B=1 beam 1", "ours int8", SHORT_GREEDY, 1.6),
    ("B=1 beam 1", "ours int4", SHORT_GREEDY, 2.4),
    ("B=1 beam 5", "ours int8", SHORT_BEAM, 2.3),
    ("B=8 beam 1", "ours int8", (8, 1, 32, 48), 2.0),
    ("B=8 beam 5", "ours int8", (8, 5, 32, 48), 2.0),
    ("B=1 beam 5, 256 source and 64 target tokens", "ours int8", (1, 5, 256, 64), 2.0),
)
FP32_RIVALS = ("ctranslate2 float32", "transformers fp32", "optimum fp32")


@dataclass(frozen=True)
class Target:
    """One line of the table; `measured` is None where the results say nothing of it."""

    name: str
    bound: str
    measured: str | None = None
    reached: bool = False

    def cells(self) -> list[str]:
        """Returns the table's cells."""
        if self.measured is None:
            return [self.name, self.bound, "not measured", ""]
        return [self.name, self.bound, self.measured, "reached" if self.reached else "**missed**"]


def cell_of(row: Data) -> tuple[int, int, int, int]:
    """Returns what a row of speed.json measured."""
    return (row["batch_size"], row["beam_size"], row["source_length"], row["target_length"])


def speed_ratio(samples: list[float], base: list[float]) -> float:
    """Returns how many times as fast as the base it is: the median of pairs in time."""
    return statistics.median(b / a for a, b in zip(samples, base, strict=False))


def targets(results: Mapping[str, Data | None]) -> Iterator[Target]:
    """Yields every target, with what the result files say of it."""
    yield from _speeds(_rows(results, "speed"))
    yield from _bandwidth(_rows(results, "bandwidth"))
    yield _load(_rows(results, "load"))
    yield _private(_rows(results, "memory"))
    yield from _workers(_rows(results, "workers"))
    yield from _sizes(_rows(results, "memory"))
    yield from _busy(_rows(results, "busy"))
    yield from _fp32(_rows(results, "speed"))


def _rows(results: Mapping[str, Data | None], name: str) -> list[Data]:
    data = results.get(name)
    return data["rows"] if data else []


def _engine(rows: list[Data], name: str) -> Data | None:
    return next((row for row in rows if row["engine"] == name), None)


def _speeds(rows: list[Data]) -> Iterator[Target]:
    samples = {(row["engine"], cell_of(row)): row["samples"] for row in rows}
    for what, engine, cell, least in SPEEDS:
        name, bound = f"{what}: {engine}", f"{least} x the speed of CTranslate2 int8"
        if (engine, cell) in samples and (PEER, cell) in samples:
            ratio = speed_ratio(samples[engine, cell], samples[PEER, cell])
            yield Target(name, bound, f"{ratio:.2f} x", ratio >= least)
        else:
            yield Target(name, bound)


def _fp32(rows: list[Data]) -> Iterator[Target]:
    ours = {cell_of(row): row["samples"] for row in rows if row["engine"] == "ours fp32"}
    for rival in FP32_RIVALS:
        name, bound = f"fp32 against {rival}", "ahead in every column"
        ratios = [
            speed_ratio(ours[cell_of(row)], row["samples"])
            for row in rows
            if row["engine"] == rival and cell_of(row) in ours
        ]
        if ratios:
            measured = f"{min(ratios):.2f} x to {max(ratios):.2f} x its speed"
            yield Target(name, bound, measured, min(ratios) > 1)
        else:
            yield Target(name, bound)


def bandwidth_share(row: Data) -> float:
    """Returns the least time to read a step's weights over the time of the step."""
    return row["bytes"] / max(row["bandwidth"]) / statistics.median(row["steps"])


def _bandwidth(rows: list[Data]) -> Iterator[Target]:
    for engine in ("ours int8", "ours int4"):
        name = f"share of the memory's bandwidth, B=1 beam 1: {engine}"
        row = _engine(rows, engine)
        if row:
            share = bandwidth_share(row)
            yield Target(name, "75 %", f"{share:.0%}".replace("%", " %"), share >= 0.75)
        else:
            yield Target(name, "75 %")


def _load(rows: list[Data]) -> Target:
    name, bound = "a fresh process to its first token: ours int8", "at most 0.5 s"
    row = _engine(rows, "ours int8")
    if not row:
        return Target(name, bound)
    seconds = statistics.median(row["samples"])
    return Target(name, bound, f"{seconds:.2f} s", seconds <= 0.5)


def _private(rows: list[Data]) -> Target:
    name, bound = "private memory after a beam-5 translation: ours int8", "at most 200 MB"
    row = _engine(rows, "ours int8")
    if not row:
        return Target(name, bound)
    private = row["used"]["private"]
    return Target(name, bound, f"{private / 1e6:.0f} MB", private <= 200e6)


def _workers(rows: list[Data]) -> Iterator[Target]:
    ours = [row for row in rows if row["engine"] == "ours int8"]
    found = {(row["processes"], row.get("forked", False)): row["proportional"] for row in ours}
    for forked, what in ((False, "processes'"), (True, "forked workers'")):
        name, bound = f"four {what} memory (PSS): ours int8", "at most 1.3 x one process'"
        if (1, False) in found and (4, forked) in found:
            ratio = found[4, forked] / found[1, False]
            yield Target(name, bound, f"{ratio:.2f} x", ratio <= 1.3)
        else:
            yield Target(name, bound)


def _sizes(rows: list[Data]) -> Iterator[Target]:
    for engine, most in (("ours int8", 500), ("ours int4", 300)):
        name, bound = f"bundle on disk: {engine}", f"at most {most} MB"
        row = _engine(rows, engine)
        if row:
            yield Target(name, bound, f"{row['disk'] / 1e6:.0f} MB", row["disk"] <= most * 1e6)
        else:
            yield Target(name, bound)


def slowdown(row: Data) -> float:
    """Returns how many times as long it takes beside a busy neighbour."""
    return speed_ratio(row["quiet"], row["busy"])


def _busy(rows: list[Data]) -> Iterator[Target]:
    for beam_size in (1, 5):
        name = f"beside a busy process on one core, B=1 beam {beam_size}: ours int8"
        bound = "at most 1.6 x as long as alone"
        found = {row["engine"]: slowdown(row) for row in rows if row["beam_size"] == beam_size}
        if "ours int8" in found:
            peer = f" (CTranslate2 int8 {found[PEER]:.2f} x)" if PEER in found else ""
            ours = found["ours int8"]
            yield Target(name, bound, f"{ours:.2f} x{peer}", ours <= 1.6)
        else:
            yield Target(name, bound)
