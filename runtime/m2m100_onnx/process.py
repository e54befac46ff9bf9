"""The process that the runtime lives in: threads, forks, signals, its end, cores, memory.

Knows the operating system; knows no models and no text.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import inspect
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

__all__ = [
    "Renewable",
    "affine_cores",
    "cores",
    "finish_at_exit",
    "leave_behind",
    "memory_limit",
    "native_call",
    "raised_by_signal_handler",
    "renew_in_children",
    "side_by_side",
    "tolerate",
]

_PROC = Path("/proc/self")
_PATIENCE = 10.0
"""Seconds that the end of the program waits for native calls; a step of a search takes far less."""


def side_by_side(*functions: Callable[[], Any]) -> list[Any]:
    """Calls functions at the same time, a thread each, the first in the caller's thread.

    Where the system allows no more threads, the caller's thread calls the rest one after another.
    `concurrent.futures` is of no use here: its executors refuse work once the main thread has
    ended, and threads that outlive the main one translate too. Its futures turn an interrupt that
    comes at the wrong moment into an `InvalidStateError`.

    Returns:
        What the functions return, in their order, when all have ended.

    Raises:
        BaseException: that of the first function, in their order, that raised one. Functions that
            had not begun by then are not called.
    """
    parts = [_Part(function) for function in functions]
    try:
        try:
            for part in parts[1:]:
                if not part.start():
                    break
            for part in parts:
                if part.claim():
                    part.call()
                    if part.error is not None:
                        break
        finally:
            for part in parts:
                part.join()
        return [part.take() for part in parts]
    finally:
        # The frames of an error must not hold the error: what they refer to, such as all keys and
        # values of a search, would stay in memory until the next garbage collection.
        for part in parts:
            part.error = None


class _Part:
    """A function that is called once, by a thread of its own or by the caller's."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._result: Any = None
        self._unclaimed = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started = False

    def start(self) -> bool:
        """Starts a thread for the part; says whether the system allowed it."""
        if _end.thread is not None:  # New threads may make no native calls, and this one may.
            return False
        self._thread = threading.Thread(target=self._call_if_unclaimed)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            if raised_by_signal_handler(error):
                raise
            return False
        self._started = True
        return True

    def claim(self) -> bool:
        """Says whether the part is the asker's to call; so it is for whoever asks first."""
        return self._unclaimed.acquire(blocking=False)

    def call(self) -> None:
        """Calls the function, and keeps its result or its error."""
        try:
            self._result = self._function()
        except BaseException as error:
            self.error = error

    def _call_if_unclaimed(self) -> None:
        if self.claim():
            self.call()

    def join(self) -> None:
        """Waits until the thread has ended; a part that nobody has begun is not begun any more."""
        unclaimed = self.claim()
        # An interrupt may have come while the thread was started. Only one that has claimed its
        # part is then known to have started, and can be waited for.
        if self._thread is not None and (self._started or not unclaimed):
            self._thread.join()

    def take(self) -> Any:
        """Returns what the function returned.

        Raises:
            BaseException: what the function raised.
        """
        if self.error is not None:
            raise self.error
        return self._result


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


class _End:
    """The end of the program.

    Attributes:
        thread: the thread that ends it; None before.
        calls: the threads that are in native code.
        parked: the numbers of the threads that wait for the end.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.calls: set[threading.Thread] = set()
        self.parked: set[int] = set()


_end = _End()


@contextlib.contextmanager
def native_call() -> Iterator[None]:
    """Marks a call into native code that other threads can see and that must come to its end.

    The interpreter ends a daemon thread when it comes back from native code after the end of the
    program. C++ cannot be left that way, and aborts the process.

    While the program ends, another thread than the one that ends it does not return from here. An
    error instead would make it print at a time when printing can end the process, too.
    """
    thread = threading.current_thread()
    # First the mark, then the look: `_finish` does it the other way round.
    _end.calls.add(thread)
    try:
        if _end.thread not in (None, thread):
            _end.parked.add(threading.get_ident())
            _end.calls.discard(thread)
            # Until the interpreter ends this thread, which it can in Python's own code.
            while True:
                time.sleep(_PATIENCE)
        yield
    finally:
        _end.calls.discard(thread)


def finish_at_exit() -> None:
    """Makes the end of the program refuse new native calls and wait for those at work.

    Call it after the native library is imported: exit hooks run in the opposite order of their
    registration, and this one must run before the library's own. At that time all threads but
    daemons have ended.
    """
    atexit.register(_finish)


def _finish() -> None:
    _end.thread = threading.current_thread()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        # A thread that an exception from outside has ended may have left its mark.
        others = list(_end.calls - {_end.thread})
        if not any(thread.is_alive() for thread in others) and not _others_inside():
            return
        time.sleep(0.001)


def _others_inside() -> bool:
    """Says whether the package is at work in another thread, in whichever native code it calls.

    Small calls have no mark, such as those that bind a tensor. They release Python's lock too.
    """
    package = __name__.partition(".")[0]
    here = threading.get_ident()
    for thread, innermost in sys._current_frames().items():
        outside = thread == here or thread in _end.parked
        frame: FrameType | None = None if outside else innermost
        while frame is not None:
            if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
                return True
            frame = frame.f_back
    return False


def raised_by_signal_handler(error: BaseException) -> bool:
    """Says whether the handler of a signal raised an exception, of whatever type.

    Python runs handlers between two instructions of the main thread, so their exceptions come out
    of any line. They are no failure of that line, and must pass through untouched: such are the
    time limits of Celery and RQ.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        interrupted, frame = trace.tb_frame, trace.tb_next.tb_frame
        # Python passes a handler the frame that it interrupts; no other function gets that of its
        # caller.
        if _given(frame, interrupted):
            return True
        trace = trace.tb_next
    return False


def _given(frame: Any, value: object) -> bool:
    """Says whether a value is among the arguments of a frame's function."""
    names, rest, _, variables = inspect.getargvalues(frame)
    arguments = [variables.get(name) for name in names]
    arguments += variables.get(rest, ()) if rest else ()
    return any(argument is value for argument in arguments)


class tolerate:  # noqa: N801 - a context manager with a function's name, as `contextlib.suppress`.
    """Suppresses exceptions of some types, but none that the handler of a signal raised."""

    def __init__(self, *types: type[BaseException]) -> None:
        """Takes the types."""
        self._types = types

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        return isinstance(error, self._types) and not raised_by_signal_handler(error)


def affine_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    That is the number that it may run on, or fewer if the quota of its container is smaller. A
    fraction of a core does not count: once the threads have used the quota up, all of them stand
    still until the next period, so one thread too many costs more than it brings.
    """
    found = float(affine_cores())
    for folder in _cgroups("cpu"):
        with tolerate(OSError, ValueError, ZeroDivisionError):
            found = min(found, _quota(folder))
    return max(1, math.floor(found))


def _quota(folder: Path) -> float:
    """Returns the cores that a cgroup may use at a time."""
    if (folder / "cpu.max").exists():  # Version 2: "max 100000" where there is no quota.
        quota, period = (folder / "cpu.max").read_text().split()
    else:  # Version 1: -1 where there is none.
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((folder / name).read_text() for name in names)
    cores = float("inf" if quota == "max" else quota) / int(period)
    return cores if cores > 0 else math.inf


def memory_limit() -> int | None:
    """Returns the bytes of memory of the machine, or of the container if it has fewer.

    The container's limit is the smallest of its cgroup, version 1 or 2, and of those around it.
    None where the system tells neither.
    """
    limits = []
    with tolerate(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            # Version 2 writes "max" where there is no limit, version 1 a number beyond any memory.
            with tolerate(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min((limit for limit in limits if limit > 0), default=None)


def _cgroups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's cgroup and of those around it, of both versions.

    Args:
        controller: `cpu` or `memory`; version 1 has a tree of cgroups for each.
    """
    paths: dict[str, str] = {}
    mounts: list[str] = []
    with tolerate(OSError, ValueError):
        for line in (_PROC / "cgroup").read_text().splitlines():
            # "4:cpu,cpuacct:/path" for version 1, "0::/path" for version 2
            names, _, where = line.partition(":")[2].partition(":")
            paths |= dict.fromkeys(names.split(","), where)
        mounts = (_PROC / "mountinfo").read_text().splitlines()
    for line in mounts:  # "36 35 98:0 ROOT POINT ... - TYPE SOURCE OPTIONS"
        mount, _, system = (part.split() for part in line.partition(" - "))
        kind, _, options = (*system, "", "", "")[:3]
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and controller in options.split(","):
            path = paths.get(controller)
        else:
            continue
        if path is None or len(mount) < 5:
            continue
        root, point = mount[3], Path(mount[4])
        # A mount shows the tree from its root on. In a container, that is the container's cgroup.
        inner = os.path.relpath(path, root)
        folder = point if inner.startswith("..") else point / inner
        yield from (up for up in (folder, *folder.parents) if up.is_relative_to(point))
