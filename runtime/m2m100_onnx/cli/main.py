"""The `m2m100` command: its parser, its exit statuses and its one line of error.

Knows the commands by name alone. Each imports what it needs when it runs, so that `m2m100 --help`
waits for neither numpy nor onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from m2m100_onnx import __version__
from m2m100_onnx.cli import (
    align,
    cache,
    completion,
    export,
    info,
    jobs,
    language_model,
    languages,
    rerank,
    serve,
    translate,
)
from m2m100_onnx.cli.arguments import as_typed
from m2m100_onnx.cli.benchmark import command as benchmark
from m2m100_onnx.cli.output import complain
from m2m100_onnx.cli.signals import terminable
from m2m100_onnx.errors import ExportError, InvalidInputError, M2M100Error, StoppedError

__all__ = ["main", "make_parser"]

_STATUSES = """\
exit status:
  0    done
  1    an export or a verification failed, --timeout was over, or the output cannot be written
  2    arguments, language codes, input, bundle or installation need a correction
  129  ended by SIGHUP, cleaned up
  130  interrupted (as a shell reports SIGINT), cleaned up
  141  the reader of the output closed it (as a shell reports SIGPIPE)
  143  ended by SIGTERM, cleaned up"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `m2m100` command and returns its exit status.

    Args:
        argv: the arguments, by default the process's.

    Raises:
        SystemExit: from argparse, after `--help` and `--version` (0) or a wrong argument (2).
    """
    if sys.stderr is None:
        # It is closed, as in some daemons; `print` would write to standard output instead.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    if not sys.stdout:
        complain("standard output is closed")
        return 2
    with terminable() as caught:
        try:
            status = _run(argv)
        except Exception:
            # Libraries may raise an error of theirs in the place of a signal's.
            if caught.status is None:
                raise
            status = caught.status
    # The signal is the reason, whatever failed on the way out, such as a write to a lost terminal.
    return caught.status if status and caught.status else status


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = make_parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _settle_stdout()
        return 141
    except StoppedError as error:
        complain(error.args[0])
        return 1
    except M2M100Error as error:
        complain(as_typed(str(error)) if isinstance(error, InvalidInputError) else str(error))
        return 1 if isinstance(error, ExportError) else 2
    except OSError as error:
        _settle_stdout()
        complain(str(error))
        return 1
    return status


def _settle_stdout() -> None:
    """Writes what is buffered, or drops it: the interpreter would fail at it again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line; the command's function is its `run`."""
    parser = argparse.ArgumentParser(
        prog="m2m100",
        description="Translate between 100 languages with M2M100, and score text with XLM, on "
        "onnxruntime.",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"m2m100 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (translate, serve, jobs, languages, info, cache, export, benchmark, completion):
        command.add_parser(commands)
    language_model.add_parsers(commands)
    rerank.add_parser(commands)
    align.add_parser(commands)
    return parser
