"""Gives memory back to the system. Knows onnxruntime's arena and glibc's heap, and no model."""

from __future__ import annotations

import ctypes
import os
from importlib import resources

import numpy as np

from m2m100_onnx.model.support import CPU, ort

__all__ = ["SHARED_ARENA", "release_memory"]

SHARED_ARENA = "session.use_env_allocators"
_SHRINK = "memory.enable_memory_arena_shrinkage"


def release_memory() -> None:
    """Returns what closed sessions and past runs left in onnxruntime's shared arena and the heap.

    onnxruntime shrinks an arena at the end of a run that asks for it. So this runs the smallest
    graph there is, in a session that uses the arena that sessions with mapped weights share.
    """
    graph = resources.files("m2m100_onnx") / "model" / "data" / "gather_float32.onnx"
    options, run = ort.SessionOptions(), ort.RunOptions()
    options.log_severity_level = run.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry(SHARED_ARENA, "1")
    run.add_run_config_entry(_SHRINK, "cpu:0")
    session = ort.InferenceSession(graph.read_bytes(), options, providers=[CPU])
    data, rows = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.int64)
    session.run(None, {"data": data, "rows": rows}, run)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
