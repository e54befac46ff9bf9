"""The machine's limits by the kernels' own loops, and how near to them a step comes.

`limits.cpp` is compiled for this processor. A step cannot be faster than the reading of its weights
by all cores, nor than its multiply-adds. Knows no other engine than ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from limits import step_bytes
from m2m100_onnx.bundle.graphs import FUSED_RANK_FILE, FUSED_STEP_FILE
from suite import HERE, Row, Suite

KERNELS = HERE.parent / "runtime" / "kernels" / "src"
FLAGS = (
    *("-O3", "-std=c++17", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-pthread"),
    f"-I{KERNELS}",
)


def native_limits(work: Path, repetitions: int, mebibytes: int = 1024) -> Row:
    """Compiles and runs the two loops on all cores.

    Args:
        work: gets the program.
        repetitions: of each loop.
        mebibytes: that are read; more than the caches hold.

    Raises:
        RuntimeError: there is no C++ compiler, or the kernels' sources are missing.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise RuntimeError(f"limits: expected a C++ compiler, found no {' or '.join(names)}")
    if not (KERNELS / "products.h").exists():
        raise RuntimeError(f"limits: expected the kernels' sources in {KERNELS}, found none")
    program = work / "limits"
    command = [compiler, *FLAGS, str(HERE / "limits.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"limits: {compiler} failed: {done.stderr.strip()[-500:]}")
    counts = [str(os.cpu_count() or 1), str(mebibytes), str(repetitions)]
    found = subprocess.run([str(program), *counts], stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(found.stdout)
    return row


def step_costs(suite: Suite, name: str) -> Row:
    """Returns the bytes that a step of an engine reads, and its multiply-adds for one row."""
    bundle = suite.folder(name)
    config = json.loads((suite.checkpoint(suite.shape) / "config.json").read_text())
    width, layers = config["d_model"], config["decoder_layers"]
    # Query, key, value and output of self-attention; query and output of cross-attention.
    matrices = 6 * width**2 + 2 * width * config["decoder_ffn_dim"]
    return {
        "bytes": sum(step_bytes(bundle / file) for file in (FUSED_STEP_FILE, FUSED_RANK_FILE)),
        "products": layers * matrices + width * config["vocab_size"],
    }


def least_seconds(limits: Row, costs: Row, rows: int) -> float:
    """Returns the least time of a step: to read its weights or to multiply, whichever is longer."""
    return max(
        costs["bytes"] / max(limits["read"]), costs["products"] * rows / max(limits["products"])
    )
