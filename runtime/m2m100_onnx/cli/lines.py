"""The texts of a command: its arguments, a file, or standard input, a text a line.

Answers them with lines, some texts at a time. Knows lines, bytes and files; knows no command.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from m2m100_onnx.cli.arguments import Add, path
from m2m100_onnx.cli.files import open_output
from m2m100_onnx.cli.output import size_left
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.options import READ_AHEAD

__all__ = [
    "LINE_BREAK",
    "Source",
    "Texts",
    "add_files",
    "answer_lines",
    "check_input",
    "encoded",
    "open_input",
]

LINE_BREAK = re.compile(r"\r\n|\r|\n")
_LINE_END = re.compile(rb"\r?\n\Z")

Source = list[str] | BinaryIO


def add_files(add: Add, about: str) -> None:
    """Adds the texts, --input and --output.

    Args:
        add: adds an argument.
        about: what the texts are for.
    """
    add("texts", nargs="*", metavar="TEXT", help=f"{about}, in place of --input.")
    described = "File of UTF-8 text, a text a line. (default: standard input)"
    add("--input", type=path, metavar="FILE", help=described)
    described = "File that is replaced when all is done. (default: standard output)"
    add("--output", type=path, metavar="FILE", help=described)


class _Line(NamedTuple):
    """A text that was read: as it is shown, its bytes, and why it is no text if it is none."""

    text: str
    size: int
    problem: str | None


class Texts:
    """The texts of an input, decoded as they are asked for.

    Attributes:
        noun: what a text is called in an error.
        size: bytes of the input; 0 if unknown, None if progress is of no use.
        waiting: what was read and not answered.
    """

    def __init__(self, source: Source) -> None:
        self.noun = "text" if isinstance(source, list) else "line"
        self.size = None if isinstance(source, list) or source.isatty() else size_left(source) or 0
        self.waiting: deque[_Line] = deque()
        self._source: Iterable[str | bytes] = source

    def __iter__(self) -> Iterator[Any]:
        """Yields texts; bytes that are no text stay bytes, which the translator refuses."""
        for raw in self._source:
            if isinstance(raw, str):
                self.waiting.append(_Line(raw, len(raw), None))
                yield raw
                continue
            # `splitlines` would also split at U+2028 and others, which are part of the text.
            line = _LINE_END.sub(b"", raw)
            try:
                text, problem = line.decode(), None
            except UnicodeDecodeError as error:
                text = line.decode(errors="backslashreplace")
                problem = f"expected UTF-8, found {error}"
            self.waiting.append(_Line(text, len(raw), problem))
            yield line if problem else text


def encoded(line: str) -> bytes:
    """Returns a line of output; what is not UTF-8 in an argument becomes escapes."""
    return line.encode(errors="backslashreplace") + b"\n"


def check_input(given: argparse.Namespace) -> None:
    """Raises `InvalidInputError` if there are texts and --input."""
    if given.texts and given.input is not None:
        raise InvalidInputError("expected texts or --input, found both")


def open_input(given: argparse.Namespace) -> contextlib.AbstractContextManager[Source]:
    """Opens the texts of a command: its arguments, else --input, else standard input.

    Raises:
        InvalidInputError: the input cannot be read.
    """
    check_input(given)
    if given.texts:
        return contextlib.nullcontext(list(map(str, given.texts)))
    if given.input not in (None, "-"):
        try:
            return Path(given.input).open("rb")
        except OSError as error:
            raise InvalidInputError(f"cannot read {given.input}: {error.strerror}") from None
    if not sys.stdin:
        raise InvalidInputError("standard input is closed")
    return contextlib.nullcontext(sys.stdin.buffer)


def answer_lines(
    arguments: argparse.Namespace,
    answer: Callable[[list[str]], list[str]],
    end: Callable[[], list[str]] = list,
) -> int:
    """Reads texts, and writes the lines that `answer` makes of them, some texts at a time.

    Args:
        arguments: those that `add_files` added.
        answer: makes lines of some texts; an error about one of them has its position.
        end: makes the last lines.

    Raises:
        InvalidInputError: a text cannot be read; the lines of those before it are written.
    """
    with open_input(arguments) as source, open_output(arguments.output) as output:
        texts = Texts(source)
        ahead = 1 if not isinstance(source, list) and source.isatty() else READ_AHEAD
        done, stream = 0, iter(texts)
        while some := list(itertools.islice(stream, ahead)):
            try:
                lines = answer(some)
            except M2M100Error as error:
                output.flush()
                if error.position is None:
                    raise
                line = texts.waiting[error.position]
                place = f"{texts.noun} {done + error.position + 1}"
                raise InvalidInputError(f"{place}: {line.problem or error.message}") from error
            output.writelines(map(encoded, lines))
            output.flush()
            done += len(some)
            texts.waiting.clear()
        output.writelines(map(encoded, end()))
        output.flush()
    return 0
