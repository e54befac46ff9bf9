"""Measures how fast bundles translate, and the memory they take.

Every configuration of the plan (`benchmark_plan`) has processes of its own (`benchmark_worker`).
What is timed is the whole translate call, text in and text out. Knows no arguments and no formats.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from m2m100_onnx import __version__
from m2m100_onnx.benchmark_plan import Configuration, Job
from m2m100_onnx.errors import InferenceError
from m2m100_onnx.sessions import cores, ort

__all__ = [
    "Result",
    "Summary",
    "environment",
    "measure",
    "summarize",
]


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
        memory: bytes `private`, `shared` and `peak`, see `benchmark_worker.memory`.
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
    """The summary of at least one sample."""
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
    """Versions, processor and load of this machine now; None for what it does not tell."""
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
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "sentencepiece": sentencepiece.__version__,
            "python": platform.python_version(),
        },
    }


def measure(job: Job) -> Result:
    """Runs a configuration's processes, one after the other.

    Raises:
        InferenceError: a process failed; the message is its own.
    """
    seconds = []
    for left in reversed(range(job.loads)):
        taken, found = _ask({**job.request, "measure": left == 0})
        seconds.append(taken)
    calls = found["whole"]
    batches = job.request["batches"]
    repeated = job.request["repetitions"] * job.request["concurrency"]
    return Result(
        configuration=job.configuration,
        load_seconds=tuple(seconds),
        first_token_seconds=tuple(ended - began for began, ended, _ in found["first_token"]),
        latency_seconds=tuple(ended - began for began, ended, _ in calls),
        wall_seconds=max(ended for _, ended, _ in calls) - min(began for began, _, _ in calls),
        sentences=repeated * sum(map(len, batches)),
        generated_tokens=sum(tokens for _, _, tokens in calls),
        memory=found["memory"],
    )


def _ask(request: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Runs a worker; returns its seconds to the first token, and what it measured."""
    command = [sys.executable, "-m", "m2m100_onnx.benchmark_worker"]
    # So that what is measured is this very package, wherever it was imported from.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answers: list[dict[str, Any]] = []
    # A file, since a pipe that nobody reads would stop a worker that warns a lot.
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        with subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(json.dumps(request))
                taken = math.nan
                for line in process.stdout:
                    taken = taken if answers else time.perf_counter() - started
                    answers.append(json.loads(line))
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    last = answers[-1] if answers else {}
    if process.returncode or not last or "error" in last:
        reason = f"its process ended with status {process.returncode}: {' '.join(said[-1:])}"
        if process.returncode < 0:
            reason = f"its process was killed by signal {-process.returncode}; out of memory?"
        raise InferenceError(f"{request['bundle']}: {last.get('error', reason)}")
    return taken, last
