"""Faults of one node of a test's cluster: Python imports this file when a worker starts there.

FAULT_DISK_FULL=NAME     files whose name has NAME cannot be synchronized to the disk
FAULT_KILL=NAME          whoever begins to write the shard NAME is killed
FAULT_UNREADABLE=NAME    files of this name cannot be opened
FAULT_PROCESSOR=TEXT     /proc/cpuinfo says TEXT
"""

import errno
import os
import pathlib
import re
import signal
from typing import Any

_open, _fsync = pathlib.Path.open, os.fsync
_readers = {name: getattr(pathlib.Path, name) for name in ("read_text", "read_bytes")}


def _refuse(path: pathlib.Path) -> None:
    name = os.environ.get("FAULT_UNREADABLE")
    if name and name == path.name:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _opening(path: pathlib.Path, *rest: Any, **named: Any) -> Any:
    _refuse(path)
    name = os.environ.get("FAULT_KILL")
    if name and re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{32}}\.partial", path.name):
        os.kill(os.getpid(), signal.SIGKILL)
    return _open(path, *rest, **named)


def _synchronizing(number: int) -> None:
    name = os.environ.get("FAULT_DISK_FULL")
    if name and name in str(pathlib.Path(f"/proc/self/fd/{number}").readlink()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _fsync(number)


def _reading(name: str) -> Any:
    def read(path: pathlib.Path, *rest: Any, **named: Any) -> Any:
        _refuse(path)
        text = os.environ.get("FAULT_PROCESSOR")
        if text and str(path) == "/proc/cpuinfo" and name == "read_text":
            return text
        return _readers[name](path, *rest, **named)

    return read


pathlib.Path.open = _opening  # type: ignore[method-assign]
os.fsync = _synchronizing
for _name in _readers:
    setattr(pathlib.Path, _name, _reading(_name))
