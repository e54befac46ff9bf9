"""The files of the weights cache: written so that they map quickly, and checked for damage.

Knows bytes, pages and disks; knows no cache and no graphs.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2m100_onnx.process import raised_by_signal_handler, tolerate

__all__ = ["damage", "rewrite", "sync"]

_PIECE, _PIECES_COMPARED = 256 << 10, 16
_LARGE_PAGE = 2 << 20
_STRETCH = 4 * _LARGE_PAGE
"""Bytes per write; the kernel makes large pages of writes that fill large pages."""
_TIME_UNITS = (100, 1000, 10**6, 10**9, 2 * 10**9)
"""Nanoseconds to which NTFS, Python archives, databases, container images and FAT cut times."""
_UNLOCKED = 6000
"""Bytes from which on `zlib.crc32` releases Python's lock while it reads."""


def rewrite(path: Path) -> dict[str, Any]:
    """Writes a file again in long stretches; returns the record that `damage` compares with.

    onnxruntime writes a few kilobytes at a time, which end up in pages of 4 KiB. Where the file
    system has larger ones, as ext4 has since Linux 6.16, long writes end up in pages of 2 MiB, and
    opening a graph takes a fraction of the page faults.

    Raises:
        OSError: the disk is full, or cannot be read or written.
    """
    pieces: list[int] = []
    new = path.with_name(f"{path.name}.new")
    with path.open("rb") as old, new.open("wb") as file, memoryview(bytearray(_STRETCH)) as buffer:
        while length := old.readinto(buffer):
            stretch = buffer[:length]
            file.write(stretch)
            starts = range(0, length, _PIECE)
            pieces += [zlib.crc32(stretch[start : start + _PIECE]) for start in starts]
    new.replace(path)
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "pieces": pieces}


def damage(path: Path, record: Mapping[str, Any], *, sample: bool) -> str | None:
    """Says how a file differs from what was written; None if it does not.

    Args:
        path: the file.
        record: the result of `rewrite`.
        sample: whether to compare 16 pieces of 256 KiB only if the modification time is the one
            that was recorded, and to read the file ahead, since it is about to be mapped. If all
            pieces had to be compared and none is damaged, the file gets the recorded time again.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    if status.st_size != record["size"]:
        return f"{path}: expected {record['size']:,} bytes, found {status.st_size:,}"
    # A copy may have other times than what it is a copy of.
    untouched = _is_time(status.st_mtime_ns, record["mtime_ns"])
    pieces = range(len(record["pieces"]))
    if sample and untouched and len(pieces) > _PIECES_COMPARED:
        # A generator of its own leaves the program's seed alone.
        others = random.Random().sample(pieces[1:-1], _PIECES_COMPARED - 2)
        chosen = [0, *sorted(others), pieces[-1]]
    else:
        chosen = list(pieces)
    # One buffer for all pieces, since allocating each takes longer than reading it.
    with path.open("rb", buffering=0) as file, memoryview(bytearray(_PIECE)) as buffer:
        if sample:
            _fetch(file.fileno(), status.st_size)
        for piece in chosen:
            file.seek(piece * _PIECE)
            if zlib.crc32(buffer[: file.readinto(buffer)]) != record["pieces"][piece]:
                return f"{path} is damaged at byte {piece * _PIECE:,} or after it"
    if sample and not untouched:
        with tolerate(OSError, OverflowError):  # The next use is quicker, where permissions allow.
            os.utime(path, ns=(status.st_atime_ns, record["mtime_ns"]))
    return None


def _is_time(found: int, written: int) -> bool:
    """Says whether a time is the one that was written, to the precision of archives and disks."""
    return found == written or found in {written - written % unit for unit in _TIME_UNITS}


def _fetch(file: int, size: int) -> None:
    """Makes the kernel read a file into memory, in large pages where it has those.

    Otherwise onnxruntime's own reads bring it in, in small pages that stay small. A part that is in
    memory already costs one page fault per 2 MiB.
    """
    if sys.platform != "linux" or size < _LARGE_PAGE:
        return
    with mmap.mmap(file, size, prot=mmap.PROT_READ) as data, memoryview(data) as view:
        try:
            data.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:  # A kernel without large pages.
            if raised_by_signal_handler(error):
                raise
            return
        for start in range(0, size, _LARGE_PAGE):
            zlib.crc32(view[start : start + _UNLOCKED])


def sync(path: Path) -> None:
    """Flushes a file or a folder to the disk, before anything refers to it."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders.
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
