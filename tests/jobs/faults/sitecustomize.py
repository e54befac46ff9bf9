"""Faults of one node of a test's cluster: Python imports this file when a worker starts there.

FAULT_DISK_FULL=NAME     files whose name has NAME cannot be synchronized to the disk
FAULT_KILL=NAME          whoever begins to write such a file is killed
FAULT_PROCESSOR=TEXT     /proc/cpuinfo says TEXT
"""

import errno
import os
import pathlib
import signal
from typing import Any

_open, _fsync, _read_text = pathlib.Path.open, os.fsync, pathlib.Path.read_text


def _opening(path: pathlib.Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
    name = os.environ.get("FAULT_KILL")
    if name and name in path.name and "x" in mode and not path.name.startswith(f".{name}.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _open(path, mode, *rest, **named)


def _synchronizing(number: int) -> None:
    name = os.environ.get("FAULT_DISK_FULL")
    if name and name in str(pathlib.Path(f"/proc/self/fd/{number}").readlink()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _fsync(number)


def _reading(path: pathlib.Path, *rest: Any, **named: Any) -> str:
    text = os.environ.get("FAULT_PROCESSOR")
    if text and str(path) == "/proc/cpuinfo":
        return text
    return _read_text(path, *rest, **named)


pathlib.Path.open = _opening  # type: ignore[method-assign]
os.fsync = _synchronizing
pathlib.Path.read_text = _reading  # type: ignore[method-assign]
