"""Measures how fast bundles translate, and the memory they take.

Every configuration of the plan has processes of its own. What is timed is the whole translate call,
text in and text out. Knows no arguments and no formats.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from m2m100_onnx import __version__
from m2m100_onnx.cli.benchmark.client import Worker
from m2m100_onnx.cli.benchmark.plan import Configuration, Job
from m2m100_onnx.cli.benchmark.worker import Call
from m2m100_onnx.model.support import onnxruntime_version
from m2m100_onnx.process import cores

__all__ = ["Result", "Summary", "environment", "measure", "summarize"]


@dataclass(frozen=True)
class Result:
    """What was measured of one configuration, raw.

    Attributes:
        configuration: what it was measured with.
        load_seconds: start of a fresh process to its first generated token, one a process.
        first_token_seconds: calls as the timed ones that end after one generated token.
        latency_seconds: the timed calls.
        wall_seconds: begin of the first timed call to the end of the last, on all Python threads.
        sentences: translated in that time.
        generated_tokens: in that time, of the best hypotheses; start and language token are not
            generated, `</s>` is.
        memory: bytes `private`, `shared` (that is `mapped`) and `peak`, see `worker.memory`.
    """

    configuration: Configuration
    load_seconds: tuple[float, ...]
    first_token_seconds: tuple[float, ...]
    latency_seconds: tuple[float, ...]
    wall_seconds: float
    sentences: int
    generated_tokens: int
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class Summary:
    """Samples in a few numbers, in the samples' unit.

    Percentiles are interpolated between the nearest two samples, as numpy's are; of few samples p99
    is nearly the largest. `stddev` is the samples' own (n - 1), None of a single one.
    """

    count: int
    mean: float
    stddev: float | None
    min: float
    p50: float
    p90: float
    p99: float
    max: float


def summarize(samples: Sequence[float]) -> Summary:
    """Returns the summary of at least one sample."""
    ordered = sorted(samples)

    def percentile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place % 1)

    return Summary(
        count=len(ordered),
        mean=statistics.fmean(ordered),
        stddev=statistics.stdev(ordered) if len(ordered) > 1 else None,
        min=ordered[0],
        p50=percentile(0.5),
        p90=percentile(0.9),
        p99=percentile(0.99),
        max=ordered[-1],
    )


def environment() -> dict[str, Any]:
    """Returns versions, processor and load of this machine now; None for what it does not tell."""
    processor = platform.processor() or platform.machine() or None
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor,
        "cores": cores(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "versions": {
            "m2m100-onnx": __version__,
            "onnxruntime": onnxruntime_version(),
            "numpy": metadata.version("numpy"),
            "sentencepiece": metadata.version("sentencepiece"),
            "python": platform.python_version(),
        },
    }


def measure(job: Job) -> Result:
    """Runs a configuration's processes, one after the other.

    Raises:
        InferenceError: a process failed; the message is its own.
    """
    command = [sys.executable, "-m", "m2m100_onnx.cli.benchmark.worker"]
    # What is measured is this very package, wherever it was imported from.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    load_seconds = []
    for left in reversed(range(job.loads)):
        started = time.perf_counter()
        with Worker(str(job.opening["bundle"]), command, variables) as worker:
            worker.ask("load", **job.opening)
            first = [job.batches[0][:1]]
            worker.ask("translate", batches=first, options=job.first_token)
            load_seconds.append(time.perf_counter() - started)
            if not left:
                return _measure(job, worker, tuple(load_seconds))
    raise AssertionError("the plan has at least one process")


def _measure(job: Job, worker: Worker, load_seconds: tuple[float, ...]) -> Result:
    """Measures in a process that has its first token."""
    concurrency = job.configuration.concurrency

    def timed(options: Mapping[str, Any], passes: int) -> list[Call]:
        found = worker.ask(
            "translate",
            batches=job.batches,
            options=options,
            passes=passes,
            concurrency=concurrency,
        )
        return [Call(*call) for call in found["calls"]]

    timed(job.whole, job.warmup)
    first_token = timed(job.first_token, job.repetitions)
    calls = timed(job.whole, job.repetitions)
    memory = worker.ask("memory")
    return Result(
        configuration=job.configuration,
        load_seconds=load_seconds,
        first_token_seconds=tuple(call.ended - call.began for call in first_token),
        latency_seconds=tuple(call.ended - call.began for call in calls),
        wall_seconds=max(call.ended for call in calls) - min(call.began for call in calls),
        sentences=job.repetitions * concurrency * sum(map(len, job.batches)),
        generated_tokens=sum(call.tokens for call in calls),
        memory={
            "private": memory["private"],
            "shared": memory["mapped"],
            "peak": memory["peak"],
        },
    )
