"""Gives the memory of onnxruntime's shared arena back to the system. Knows no model."""

from __future__ import annotations

from importlib import resources

import numpy as np

from m2m100_onnx.model.support import CPU, ort
from m2m100_onnx.process import native_call

__all__ = ["shrink_arena"]

_SHARED_ARENA = "session.use_env_allocators"
_SHRINK = "memory.enable_memory_arena_shrinkage"


def shrink_arena() -> None:
    """Frees what past runs left in the arena that sessions with mapped weights share.

    onnxruntime shrinks an arena at the end of a run that asks for it. So this runs the smallest
    graph there is, in a session that uses this arena.
    """
    graph = resources.files("m2m100_onnx") / "model" / "data" / "gather_float32.onnx"
    options, run = ort.SessionOptions(), ort.RunOptions()
    options.log_severity_level = run.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry(_SHARED_ARENA, "1")
    run.add_run_config_entry(_SHRINK, "cpu:0")
    data, rows = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.int64)
    with native_call():
        session = ort.InferenceSession(graph.read_bytes(), options, providers=[CPU])
        session.run(None, {"data": data, "rows": rows}, run)
