"""The arena of memory that sessions share, and its return to the system. Knows no model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from importlib import resources

import numpy as np

from m2m100_onnx.model.support import CPU, ort
from m2m100_onnx.process import native_call, raised_by_signal_handler

__all__ = ["in_shared_arena", "shrink_arena"]

# One arena serves all sessions with mapped weights, in place of one arena each: a search on two
# cores and one on one core, of several models, reuse the same memory.
_SHARED_ARENA = "session.use_env_allocators"
_registering = threading.Lock()
_SHRINK = "memory.enable_memory_arena_shrinkage"


def in_shared_arena(entries: Mapping[str, str]) -> dict[str, str]:
    """Returns the config entries of a session that uses the shared arena, which exists then."""
    with _registering:
        _register_arena()
    return {_SHARED_ARENA: "1", **entries}


@functools.cache
def _register_arena() -> None:
    """Gives onnxruntime one arena to share in this process, unless the program has done so."""
    info = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(info, ort.OrtArenaCfg({}))
    except RuntimeError as error:
        # Old versions refuse a second arena; the program's own serves as well.
        if raised_by_signal_handler(error):
            raise


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
