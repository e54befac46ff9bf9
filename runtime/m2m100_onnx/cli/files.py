"""The file of --output: it changes whole, at the end, or not at all.

Lines go into a hidden file beside it, which takes its place at the end. Where it cannot, as for a
file that is mounted by itself into a container, its contents are copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from m2m100_onnx.errors import InvalidInputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["open_output"]

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_HIDDEN = ".m2m100-output."
_YOUNG = 1.0
"""Seconds in which a new file may have no lock yet."""
_NOT_REPLACEABLE = {errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS}
"""Why a file may be writable and not replaceable: a mount point, or the folder is not ours."""


@contextlib.contextmanager
def open_output(name: str | None) -> Iterator[BinaryIO]:
    """Opens what to write to; a named file changes at the end, and only if nothing failed.

    Raises:
        InvalidInputError: the file cannot be written.
        OSError: writing failed at the end; the message names the file that has the lines.
    """
    if name is None or name == "-":
        yield sys.stdout.buffer
        return
    if direct := _direct(name):
        with direct as file:
            yield file
        return
    target = Path(os.path.realpath(name))  # A link stays a link.
    path, file, lock = _beside(name, target)
    try:
        with file:
            if target.exists():
                shutil.copymode(target, path)
            yield file
        _replace(path, target)
    finally:
        os.close(lock)  # Until here nobody takes the file for a dead process's.
        path.unlink(missing_ok=True)


def _beside(name: str, target: Path) -> tuple[Path, BinaryIO, int]:
    """Creates the hidden file: beside its target, else in the folder of temporary files.

    Raises:
        InvalidInputError: neither folder takes it, or the target could not be written in place.
    """
    try:
        return _create(target.parent)
    except OSError as error:
        if error.errno not in _NOT_REPLACEABLE or not target.is_file():
            raise _unwritable(name, error) from None
    try:
        target.open("r+b").close()
        return _create(Path(tempfile.gettempdir()))
    except OSError as error:
        raise _unwritable(name, error) from None


def _create(folder: Path) -> tuple[Path, BinaryIO, int]:
    """Creates a hidden file; returns its path, the open file, and a descriptor that locks it."""
    _remove_stale(folder)
    path = folder / f"{_HIDDEN}{time.time_ns():x}"
    file = path.open("xb")
    # The lock is that of both descriptors, and ends with the last of them or with the process.
    lock = os.dup(file.fileno())
    if fcntl:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, file, lock


def _remove_stale(folder: Path) -> None:
    """Removes hidden files whose process was killed: nobody has them locked."""
    if not fcntl:
        return
    for path in folder.glob(f"{_HIDDEN}*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > _YOUNG:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _replace(path: Path, target: Path) -> None:
    """Puts a file in the place of another, or its contents where that cannot be."""
    try:
        path.replace(target)
    except OSError as error:
        if error.errno not in _NOT_REPLACEABLE or not target.is_file():
            raise
    else:
        return
    try:
        with path.open("rb") as source, target.open("r+b") as file:
            shutil.copyfileobj(source, file)
            file.truncate()
    except OSError as error:
        kept = path.rename(path.with_name(path.name.lstrip(".")))
        raise OSError(f"cannot write {target}: {error.strerror}; all lines are in {kept}") from None


def _direct(name: str) -> BinaryIO | None:
    """Opens a descriptor, a device or a pipe, which must not be replaced; None for a file.

    A descriptor's own name leads to a file where a shell has redirected it, perhaps to append.
    """
    descriptor = _DESCRIPTOR.fullmatch(name)
    number = int(descriptor[1]) if descriptor else _STANDARD.get(name)
    try:
        if number is not None:
            return os.fdopen(os.dup(number), "wb")
        path = Path(name)
        return path.open("wb") if path.exists() and not path.is_file() else None
    except OSError as error:
        raise _unwritable(name, error) from None


def _unwritable(name: str, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"cannot write {name}: {error.strerror}")
