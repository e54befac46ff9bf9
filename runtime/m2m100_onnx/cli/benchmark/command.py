"""`m2m100 benchmark`: arguments, files, and the report of a run that was interrupted."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from m2m100_onnx.cli.arguments import (
    Add,
    Commands,
    add_command,
    add_device,
    add_languages,
    add_revision,
    path,
)
from m2m100_onnx.cli.files import open_output
from m2m100_onnx.cli.output import has_terminal, print_lines, print_table, progress
from m2m100_onnx.errors import InvalidInputError

if TYPE_CHECKING:
    from m2m100_onnx.cli.benchmark.measure import Result
    from m2m100_onnx.cli.benchmark.plan import Grid, Job

__all__ = ["add_parser"]

_ABOUT = "Measure the speed and the memory of bundles."
_DESCRIPTION = f"""\
{_ABOUT}

Options that take N,... make a grid. Every combination is measured, each in processes
of its own. Without --text, sources are words of the vocabulary, drawn with a fixed
seed, of exactly --source-length tokens (language token and </s> included). Every
translation has exactly --target-length tokens (start and language token not
included), whatever the weights say: all bundles do the same work. What is timed is
the whole call, text in and text out."""
_GRID: tuple[tuple[str, str | None, str], ...] = (
    ("batch-size", "1", "Texts a call. (default: 1)"),
    ("beam-size", "1,5", "Beams per text; 1 is greedy search. (default: 1,5)"),
    ("source-length", None, "Tokens of every source. (default: 32)"),
    ("target-length", None, "Tokens of every translation. (default: 48)"),
    ("threads", None, "Threads inside an operator. (default: onnxruntime's, one a core)"),
    ("concurrency", "1", "Python threads that call one translator at once. (default: 1)"),
)


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    add = add_command(commands, "benchmark", _run, _ABOUT, _DESCRIPTION).add_argument
    about = "Folder of a bundle, or its name on the hub (org/name); several are compared."
    add("bundles", nargs="+", type=path, metavar="BUNDLE", help=about)
    add_revision(add)
    for name, default, about in _GRID:
        add(f"--{name}", type=_numbers, metavar="N,...", default=default, help=about)
    about = "Real text in UTF-8, a text a line, none of them empty; translations end by themselves."
    add("--text", type=path, metavar="FILE", help=about)
    source = "Language of the source. (default: en, else the first)"
    add_languages(add, source, "Language to translate into. (default: another)", required=False)
    _add_repetitions(add)
    add_device(add)
    about = "Session config entry of onnxruntime; may be given several times."
    add("--session-option", action="append", type=_pair, default=[], metavar="K=V", help=about)
    about = "Form of the report on standard output. (default: table)"
    add("--output", choices=("table", "md", "csv", "json"), default="table", help=about)
    about = "Also write everything to a JSON file, raw samples included."
    add("--json", type=path, metavar="FILE", help=about)
    about = "Also write plots; the end of the name is .svg, .png or .pdf."
    add("--plot", type=path, metavar="FILE", help=about)


def _add_repetitions(add: Add) -> None:
    about = "Repetitions that are not timed. (default: 1)"
    add("--warmup", type=_number(0), default=1, metavar="N", help=about)
    about = "Timed calls a Python thread; with --text, passes over it. (default: 5)"
    add("--repetitions", type=_number(1), default=5, metavar="N", help=about)
    about = "Fresh processes whose time to the first token is measured. (default: 3)"
    add("--loads", type=_number(1), default=3, metavar="N", help=about)


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


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.cli.benchmark import measure, plan, plots, report

    if arguments.plot is not None:
        _check_file("--plot", arguments.plot)
        plots.check(arguments.plot)
    if arguments.json is not None:
        _check_file("--json", arguments.json)
    named = [name for name in (arguments.json, arguments.plot) if name is not None]
    if len({os.path.realpath(name) for name in named}) < len(named):
        raise InvalidInputError("--json and --plot: expected two files, found one")
    grid = _grid(arguments)
    jobs = plan.prepare(grid)
    environment = measure.environment()
    _warn_if_busy(environment)
    with contextlib.ExitStack() as stack:
        # Opened now: a name that cannot be written is an error before minutes of measuring.
        opened = {name: stack.enter_context(open_output(name)) for name in named}
        results: list[Result] = []
        stopped: BaseException | None = None
        try:
            _measure(jobs, results)
        except (Exception, KeyboardInterrupt) as error:
            stopped = error
            if not results:
                raise
        found = report.document(environment, grid, results, complete=not stopped)
        _print(found, arguments.output)
        if arguments.json is not None:
            _write(opened[arguments.json], report.as_json(found))
        if arguments.plot is not None:
            plots.save(found, arguments.plot, opened[arguments.plot])
    if stopped:
        raise stopped
    return 0


def _check_file(flag: str, name: str) -> None:
    if name == "-":
        raise InvalidInputError(f"{flag}: standard output has the report; see --output")


def _grid(arguments: argparse.Namespace) -> Grid:
    from m2m100_onnx.bundle.hub import locate
    from m2m100_onnx.cli.benchmark.plan import Grid

    folders = [locate(name, arguments.revision) for name in arguments.bundles]
    values: dict[str, Any] = {
        "bundles": tuple(folders),
        # A folder of the hub's cache has a commit's name.
        "names": {f: n for f, n in zip(folders, arguments.bundles, strict=True) if f != Path(n)},
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
    # The grid has defaults for what is not given.
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
    """Measures each job and appends its result."""
    from m2m100_onnx.cli.benchmark import measure

    text = "{task.completed:.0f}/{task.total:.0f} {task.fields[now]}"
    with progress(shown=True, total=len(jobs), text=text, keep=False, now="") as update:
        for job in jobs:
            c = job.configuration
            update(now=f"{c.bundle}: batch {c.batch_size}, beam {c.beam_size}")
            results.append(measure.measure(job))
            update(advance=1)


def _print(found: dict[str, Any], form: str) -> None:
    from m2m100_onnx.cli.benchmark import report

    if form == "table" and has_terminal():
        heading, rows, common = report.table(found)
        print_lines([common])
        # A unit stands below its heading, since terminals are narrow.
        heads = ["\n".join(filter(None, title.rpartition(" ")[::2])) for title in heading]
        print_table(heads, rows, right=heads[1:])
        print_lines(report.notes(found))
    else:
        _write(sys.stdout.buffer, report.FORMATS[form](found))
    sys.stdout.flush()


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))
    file.flush()
