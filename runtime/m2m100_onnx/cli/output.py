"""What commands write: files that appear whole, lines, tables and progress for terminals, errors.

Tables and progress need rich. Without it, and in pipes, there are lines and no progress. This file
knows streams and terminals, and no command.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from m2m100_onnx.errors import InvalidInputError

__all__ = [
    "complain",
    "has_terminal",
    "open_output",
    "print_columns",
    "print_lines",
    "print_table",
    "progress",
    "size_left",
]

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
# rich cuts what is wider than its console. A terminal wraps it instead, which loses nothing.
_WIDE = 10_000


def complain(message: str) -> None:
    """Prints an error as one line of standard error."""
    with contextlib.suppress(OSError):
        # onnxruntime's messages have several lines; scripts count on one.
        print("m2m100: error:", " ".join(message.split("\n")), file=sys.stderr)


def print_lines(lines: Iterable[str]) -> None:
    """Writes lines to standard output in UTF-8, whatever the locale; a path may hold no text."""
    sys.stdout.buffer.writelines(f"{line}\n".encode("utf-8", "backslashreplace") for line in lines)


def has_terminal() -> bool:
    """Returns whether standard output shows tables: it is a terminal, and rich is installed."""
    if not sys.stdout.isatty():
        return False
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def print_table(
    heading: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()
) -> None:
    """Prints a table on the terminal that `has_terminal` found.

    Args:
        heading: a title for each column.
        rows: a cell for each column.
        right: titles of the columns that stand to the right, such as numbers.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in heading:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    _render(table, _WIDE)


def print_columns(items: Iterable[str]) -> None:
    """Prints short items in as many columns as the terminal that `has_terminal` found is wide."""
    from rich.columns import Columns

    _render(Columns(items), shutil.get_terminal_size().columns)


def _render(content: Any, width: int) -> None:
    from rich.console import Console

    text = io.StringIO()
    # A path may look like markup.
    console = Console(
        file=text, force_terminal=True, width=width, markup=False, emoji=False, highlight=False
    )
    console.print(content)
    print_lines(text.getvalue().rstrip("\n").split("\n"))


@contextlib.contextmanager
def progress(
    *, shown: bool, total: float | None, text: str, keep: bool = True, **fields: Any
) -> Iterator[Callable[..., None]]:
    """Shows a bar, a text and the time left on standard error, if that is a terminal.

    Args:
        shown: False shows nothing.
        total: the size of the work, None if it is unknown.
        text: a format string over `task`, whose `task.fields` are `fields`.
        keep: whether the line stays when the work is over.
        fields: the fields at the start.

    Yields:
        A function `update(advance=size, **fields)`, to be called after each piece of work.
    """
    columns = _columns(text, total) if shown and sys.stderr and sys.stderr.isatty() else None
    if not columns:
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    # Standard output is not the terminal that the bar is on.
    with Progress(*columns, console=console, transient=not keep, redirect_stdout=False) as shows:
        task = shows.add_task("", total=total, **fields)
        yield lambda **news: shows.update(task, **news)


def _columns(text: str, total: float | None) -> list[Any] | None:
    """Returns the parts of a line of progress, None where rich is not installed."""
    try:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    described = TextColumn(text, markup=False)
    if total is None:
        return [described]
    return [BarColumn(), TaskProgressColumn(), described, TimeRemainingColumn()]


@contextlib.contextmanager
def open_output(name: str | None) -> Iterator[BinaryIO]:
    """Opens what to write to; a named file changes at the end, and only if nothing failed.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    if name is None or name == "-":
        yield sys.stdout.buffer
        return
    if direct := _direct(name):
        with direct as file:
            yield file
        return
    target = Path(os.path.realpath(name))  # A link stays a link.
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


def size_left(file: BinaryIO) -> int | None:
    """Returns the bytes of a file that are not read yet; None if unknown, as those of a pipe."""
    with contextlib.suppress(OSError):
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return status.st_size - file.tell()
    return None
