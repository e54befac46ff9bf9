"""What commands write to and how far they are: files that appear whole, a line on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from m2m100_onnx.errors import InvalidInputError

__all__ = ["open_output", "print_lines", "progress"]


_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


def print_lines(lines: Iterable[str]) -> None:
    """Writes lines to standard output in UTF-8, whatever the locale; a path may hold no text."""
    sys.stdout.buffer.writelines(f"{line}\n".encode("utf-8", "backslashreplace") for line in lines)


@contextlib.contextmanager
def open_output(name: str | None) -> Iterator[BinaryIO]:
    """What to write to; a named file changes at the end and only if nothing failed."""
    if name is None or name == "-":
        yield sys.stdout.buffer
        return
    if direct := _direct(name):
        with direct as file:
            yield file
        return
    target = Path(os.path.realpath(name))  # so that a link stays a link
    path = target.with_name(f".m2m100.{time.time_ns():x}")
    try:
        file = path.open("xb")
    except OSError as error:
        raise _unwritable(name, error) from None
    try:
        with file:
            if target.exists():
                shutil.copymode(target, path)
            yield file
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


def _direct(name: str) -> BinaryIO | None:
    """What is open already, a device or a pipe, which a renamed file would replace; else None.

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


@contextlib.contextmanager
def progress(source: list[str] | BinaryIO, output: BinaryIO) -> Iterator[Callable[[int], None]]:
    """Says on a terminal how far the work is; is to be told each line's size in bytes."""
    screen = sys.stderr and sys.stderr.isatty()
    # Answers that appear on a terminal are progress enough.
    if isinstance(source, list) or source.isatty() or output.isatty() or not screen:
        yield lambda _: None
        return
    status = os.fstat(source.fileno())
    total = status.st_size - source.tell() if stat.S_ISREG(status.st_mode) else 0
    lines = done = 0
    started = time.monotonic()

    def show(end: str = "") -> None:
        text = f"{lines:,} lines, {lines / max(time.monotonic() - started, 1e-9):.1f} lines/s"
        text += f", {min(done / total, 1):.0%}" if total else ""
        # Padded, to cover what a longer line left.
        print(f"\r{text:<50}", end=end, file=sys.stderr, flush=True)

    def advance(size: int) -> None:
        nonlocal lines, done
        lines, done = lines + 1, done + size
        show()

    show()
    try:
        yield advance
    finally:
        show(end="\n")
