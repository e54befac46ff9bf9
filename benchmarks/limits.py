"""What bounds the speed: a busy neighbour on one of the cores, and the memory's bandwidth."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from m2m100_onnx.bundle.graphs import FUSED_RANK_FILE, FUSED_STEP_FILE
from suite import Cell, Row, Suite, seconds

_BUSY = (
    "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(flush=True)\n"
    "while True: pass"
)
READ_BYTES = 2**30
# The time of a step is the difference of two calls, in which encoder and prompt cancel out.
SHORT, LONG = 16, 48


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Runs a foreign process that keeps the first core busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def measure_busy(suite: Suite) -> Iterator[Row]:
    """Yields the seconds of one sentence beside a busy neighbour and alone, measured by turns."""
    names = suite.chosen(("ours int8", "ours int4", "ctranslate2 int8"))
    with suite.running(names) as running:
        for beam_size in (1, 5):
            cell = Cell(beam_size=beam_size)
            quiet: dict[str, list[float]] = {name: [] for name in names}
            busy: dict[str, list[float]] = {name: [] for name in names}
            for engine in running.values():
                seconds(engine, cell)
            for _ in range(suite.repetitions):
                for name, engine in running.items():
                    quiet[name].append(seconds(engine, cell))
                with busy_neighbour():
                    for name, engine in running.items():
                        busy[name].append(seconds(engine, cell))
            for name in names:
                row = {"engine": name, "beam_size": beam_size}
                yield {**row, "quiet": quiet[name], "busy": busy[name]}


def read_bandwidth(numbers: np.ndarray, threads: int = 2) -> float:
    """Returns the bytes a second that `threads` threads read together, each its own part."""
    # Of numpy's reductions, which write nothing, the maximum needs the least arithmetic.
    parts = [
        threading.Thread(target=np.max, args=(part,)) for part in np.array_split(numbers, threads)
    ]
    started = time.perf_counter()
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    return numbers.nbytes / (time.perf_counter() - started)


def step_bytes(graph: Path) -> int:
    """Returns the bytes, as stored, of the weights that each run of a graph reads whole.

    Tables of which a run reads only some rows do not count.
    """
    model = onnx.load(graph, load_external_data=False)
    read = {
        name
        for node in model.graph.node
        if not node.op_type.startswith("Gather")
        for name in node.input
    }
    sizes = [
        int(entry.value)
        for tensor in model.graph.initializer
        if tensor.name in read
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    return sum(sizes)


def measure_bandwidth(suite: Suite) -> Iterator[Row]:
    """Yields the time of a greedy step of one sentence, and the least time to read its weights."""
    names = suite.chosen(("ours int8", "ours int4", "ctranslate2 int8"))
    numbers = np.ones(READ_BYTES // 4, np.float32)
    steps: dict[str, list[float]] = {name: [] for name in names}
    bandwidth = []
    with suite.running(names) as running:
        for repetition in range(suite.repetitions + 1):
            bandwidth += [read_bandwidth(numbers) for _ in range(3)]
            for name, engine in running.items():
                short, long = (seconds(engine, Cell(target_length=n)) for n in (SHORT, LONG))
                if repetition:
                    steps[name].append((long - short) / (LONG - SHORT))
    for name in names:
        # CTranslate2 stores the same matrices in eight bits.
        bundle = suite.folder("ours int8" if name.startswith("ctranslate2") else name)
        size = sum(step_bytes(bundle / file) for file in (FUSED_STEP_FILE, FUSED_RANK_FILE))
        yield {"engine": name, "bytes": size, "bandwidth": bandwidth, "steps": steps[name]}
