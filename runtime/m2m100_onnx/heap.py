"""The heap of the C library: what it keeps of freed memory. Knows glibc; does nothing elsewhere."""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["return_large_blocks", "trim_heap"]

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h
_LARGE = 128 * 1024
"""Bytes from which on a block is mapped: glibc's first threshold, which it would raise."""


def _glibc(name: str) -> Any:
    """Returns a function of the C library; None where there is none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def trim_heap() -> None:
    """Makes glibc return freed memory to the system: opening a model leaves up to 13 MB of it."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """Makes glibc map large blocks for the whole life of the process, and unmap them when freed.

    By default, glibc maps them only until the first one is freed. From then on, blocks of up to 32
    MiB lie in its heap, between small ones that stay, and a process that runs for long keeps more
    and more of what it has freed. This costs a page fault for each page of a large block. So it is
    for a program that runs for long and is ours, such as the server, and not for a library in the
    program of another. `MALLOC_MMAP_THRESHOLD_` in the environment is the operator's choice, and
    stays.
    """
    change = _glibc("mallopt")
    if change is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        change(_MMAP_THRESHOLD, _LARGE)
