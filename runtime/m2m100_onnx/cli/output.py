"""What commands write: lines, tables and progress for terminals, errors.

Tables and progress need rich. Without it, and in pipes, there are lines and no progress. This file
knows streams and terminals, and no command.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

__all__ = [
    "complain",
    "has_terminal",
    "print_columns",
    "print_lines",
    "print_table",
    "progress",
    "size_left",
    "warn",
]

# rich cuts what is wider than its console. A terminal wraps it instead, which loses nothing.
_WIDE = 10_000


def complain(message: str) -> None:
    """Prints an error as one line of standard error."""
    with contextlib.suppress(OSError):
        # onnxruntime's messages have several lines; scripts count on one.
        print("m2m100: error:", " ".join(message.split("\n")), file=sys.stderr)


def warn(message: str) -> None:
    """Prints a warning as one line of standard error."""
    with contextlib.suppress(OSError):
        print("m2m100: warning:", " ".join(message.split("\n")), file=sys.stderr)


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


def size_left(file: BinaryIO) -> int | None:
    """Returns the bytes of a file that are not read yet; None if unknown, as those of a pipe."""
    with contextlib.suppress(OSError):
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return status.st_size - file.tell()
    return None
