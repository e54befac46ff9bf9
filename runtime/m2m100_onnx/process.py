"""The process that the runtime lives in: threads, forks, cores, memory.

Knows the operating system; knows no models and no text.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "Renewable",
    "cores",
    "leave_behind",
    "memory_limit",
    "renew_in_children",
    "side_by_side",
]

_CGROUP = Path("/sys/fs/cgroup")


def side_by_side(*functions: Callable[[], Any]) -> list[Any]:
    """Calls functions at the same time, a thread each, the first in the caller's thread.

    `concurrent.futures` is of no use here: its executors refuse work once the main thread has
    ended, and threads that outlive the main one translate too.

    Returns:
        What the functions return, in their order, when all have ended.

    Raises:
        BaseException: that of the first function, in their order, that raised one.
    """
    futures: list[Future[Any]] = [Future() for _ in functions]
    threads = [
        threading.Thread(target=_settle, args=pair)
        for pair in list(zip(futures, functions, strict=True))[1:]
    ]
    try:
        for thread in threads:
            thread.start()
        _settle(futures[0], functions[0])
    finally:
        for thread in threads:
            if thread.ident is not None:  # It was started.
                thread.join()
    # The frames of an error must not hold the error: what they refer to, such as all keys and
    # values of a search, would stay in memory until the next garbage collection.
    results = []
    while futures:
        results.append(futures.pop(0).result())
    return results


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
        del future


class Renewable(Protocol):
    """Something with locks, counts or threads that mean nothing in a forked child."""

    def renew(self) -> None:
        """Begins anew; called in the child, where no other thread runs yet."""


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """Calls `thing.renew()` in every process that is forked from this one while `thing` lives."""
    _renewables.add(thing)


def leave_behind(thing: object) -> None:
    """Keeps an object of the parent process from being destroyed in this one.

    The destructor of a session waits for the session's threads, which a child does not have: the
    child would hang at its end. The memory is the parent's, and shared until somebody writes to it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _renew() -> None:
    for thing in list(_renewables):
        thing.renew()


if hasattr(os, "register_at_fork"):  # Windows does not fork.
    os.register_at_fork(after_in_child=_renew)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit() -> int | None:
    """Returns the bytes of memory of the machine, or of the container if it has fewer.

    The container's limit is that of the cgroup (version 1 or 2) that is mounted as the root, as in
    Docker and Kubernetes. None where the system tells neither.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        # Version 2 writes "max" where there is no limit, version 1 a number beyond any memory.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((_CGROUP / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=None)
