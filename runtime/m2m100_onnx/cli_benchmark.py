"""The `m2m100 benchmark` command: its arguments, files, and what is left of an interrupted run."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from m2m100_onnx.cli_files import open_output
from m2m100_onnx.errors import InvalidInputError

if TYPE_CHECKING:
    from m2m100_onnx.benchmark import Result
    from m2m100_onnx.benchmark_plan import Grid, Job

__all__ = ["add_parser", "run"]

_ABOUT = """\
Measure how fast bundles translate and the memory they take.

Options that take N,... make a grid: every combination is measured, each in
processes of its own. Without --text, sources are words of the vocabulary, drawn
with a fixed seed, of exactly --source-length tokens (language token and </s>
included), and every translation gets exactly --target-length tokens (start and
language token not included), whatever the weights say: all bundles do the same
work. What is timed is the whole call, text in and text out."""
_GRID: tuple[tuple[str, str, str], ...] = (
    ("batch-size", "1", "texts a call (default: 1)"),
    ("beam-size", "1,5", "hypotheses kept a text; 1 is greedy (default: 1,5)"),
    ("source-length", "", "tokens of every source (default: 32)"),
    ("target-length", "", "tokens of every translation (default: 48)"),
    ("threads", "", "threads inside an operator (default: onnxruntime's, one a core)"),
    ("concurrency", "1", "Python threads that call one translator at once (default: 1)"),
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the `m2m100` command's parser."""
    parser = commands.add_parser(
        "benchmark",
        help="Measure how fast bundles translate and the memory they take.",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    about = "a bundle's folder; several are compared"
    add("bundles", nargs="+", type=Path, metavar="BUNDLE", help=about)
    for name, default, about in _GRID:
        add(f"--{name}", type=_numbers, metavar="N,...", default=default or None, help=about)
    add("--text", metavar="FILE", help="real text, a line each, with natural ends; no empty lines")
    add("--source-lang", metavar="CODE", help="language of the source (default: en or the first)")
    add("--target-lang", metavar="CODE", help="language to translate into (default: another)")
    about = "repetitions that are not timed (default: 1)"
    add("--warmup", type=_number(0), default=1, metavar="N", help=about)
    about = "timed calls a Python thread; with --text, passes over it (default: 5)"
    add("--repetitions", type=_number(1), default=5, metavar="N", help=about)
    about = "fresh processes whose time to the first token is taken (default: 3)"
    add("--loads", type=_number(1), default=3, metavar="N", help=about)
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    about = "an onnxruntime session config entry; may come several times"
    add("--session-option", action="append", type=_pair, default=[], metavar="K=V", help=about)
    about = "what is printed (default: table)"
    add("--output", choices=("table", "md", "csv", "json"), default="table", help=about)
    add("--json", metavar="FILE", help="also write all of it, raw samples too, as JSON")
    add("--plot", metavar="FILE.html", help="also write a page with plots")


def _number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, found {text!r}"
            )
        return int(text)

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_number(1), text.split(",")))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"expected K=V, found {text!r}")
    return key, value


def run(arguments: argparse.Namespace) -> int:
    """Measures, and prints what was measured, even if an error or an interrupt ends it early."""
    from m2m100_onnx import benchmark, benchmark_plan, benchmark_report

    grid = _grid(arguments)
    jobs = benchmark_plan.prepare(grid)
    environment = benchmark.environment()
    _warn_if_busy(environment)
    named = [name for name in (arguments.json, arguments.plot) if name is not None]
    if "-" in named:
        raise InvalidInputError("--json and --plot: standard output has the report; see --output")
    if len({os.path.realpath(name) for name in named}) < len(named):
        raise InvalidInputError("--json and --plot: expected two files, found one")
    with contextlib.ExitStack() as stack:
        # Opened now: a name that cannot be written is told before minutes of measuring.
        opened = {name: stack.enter_context(open_output(name)) for name in named}
        results: list[Result] = []
        stopped: BaseException | None = None
        try:
            _measure(jobs, results)
        except (Exception, KeyboardInterrupt) as error:
            stopped = error
            if not results:
                raise
        found = benchmark_report.document(environment, grid, results, complete=not stopped)
        _write(sys.stdout.buffer, benchmark_report.FORMATS[arguments.output](found))
        if arguments.json is not None:
            _write(opened[arguments.json], benchmark_report.as_json(found))
        if arguments.plot is not None:
            _write(opened[arguments.plot], benchmark_report.as_html(found))
    if stopped:
        raise stopped
    return 0


def _grid(arguments: argparse.Namespace) -> Grid:
    from m2m100_onnx.benchmark_plan import Grid

    values: dict[str, Any] = {
        "bundles": tuple(arguments.bundles),
        "batch_sizes": arguments.batch_size,
        "beam_sizes": arguments.beam_size,
        "concurrencies": arguments.concurrency,
        "session_options": dict(arguments.session_option),
    }
    names = ("source_lang", "target_lang", "warmup", "repetitions", "loads", "device")
    values.update((name, getattr(arguments, name)) for name in names)
    given = {
        "source_lengths": arguments.source_length,
        "target_lengths": arguments.target_length,
        "threads": arguments.threads,
    }
    # What is not given is the grid's to decide.
    values.update((name, value) for name, value in given.items() if value is not None)
    if arguments.text is not None:
        if arguments.source_length or arguments.target_length:
            raise InvalidInputError(
                "expected --text, or --source-length and --target-length, found both"
            )
        if not (arguments.source_lang and arguments.target_lang):
            raise InvalidInputError("--text: expected --source-lang and --target-lang with it")
        values["text"] = _lines(arguments.text)
    return Grid(**values)


def _lines(name: str) -> tuple[str, ...]:
    try:
        lines = Path(name).read_bytes().decode().split("\n")
    except OSError as error:
        raise InvalidInputError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{name}: expected UTF-8, found {error}") from None
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            # An empty line costs nothing, so it would make every number look better.
            raise InvalidInputError(f"{name}: line {number}: expected text, found none")
    return tuple(lines)


def _warn_if_busy(environment: dict[str, Any]) -> None:
    load, cores = environment["load_average"], environment["cores"]
    if load is not None and load > cores / 4:
        print(
            f"m2m100: warning: the load average is {load:.2f} on {cores} cores: another program is "
            "busy, or was a minute ago; times will be too long",
            file=sys.stderr,
        )


def _measure(jobs: Sequence[Job], results: list[Result]) -> None:
    """Measures each job and appends its result; says on a terminal how far it is."""
    from m2m100_onnx import benchmark

    screen = sys.stderr and sys.stderr.isatty()
    for number, job in enumerate(jobs, 1):
        if screen:
            c = job.configuration
            text = f"{number}/{len(jobs)} {c.bundle}: batch {c.batch_size}, beam {c.beam_size}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        try:
            results.append(benchmark.measure(job))
        finally:
            if screen:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))
    file.flush()
