"""`m2m100 jobs translate`: files in, files out, on a Ray cluster.

Knows arguments and how a summary is shown; `jobs/` knows clusters, files and rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any

from m2m100_onnx.cli.arguments import (
    Add,
    Commands,
    add_call_options,
    add_command,
    add_device,
    add_kernels,
    add_languages,
    add_model,
    given_options,
    kernels,
    path,
)
from m2m100_onnx.cli.cache import add_cache_options
from m2m100_onnx.cli.output import print_lines, progress, warn
from m2m100_onnx.errors import InvalidInputError

__all__ = ["add_parser"]

_ABOUT = "Run jobs on a Ray cluster."
_TRANSLATE = "Translate the rows of files on a Ray cluster."
_DESCRIPTION = f"""\
{_TRANSLATE}

Rows keep their order and their columns. Three columns are added: the translation, why there is
none, and what is suspicious about it. The output has a file for each shard; a shard that is
finished stays, whatever happens to others, and --resume does the rest. A summary in JSON is printed
at the end."""
_PROGRESS = "{task.fields[rows]:,} rows, {task.fields[rate]:,.1f} rows/s"


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    group = commands.add_parser("jobs", help=_ABOUT, description=_ABOUT, allow_abbrev=False)
    jobs = group.add_subparsers(required=True, metavar="JOB")
    parser = add_command(jobs, "translate", _run, _TRANSLATE, _DESCRIPTION)
    _add_files(parser.add_argument)
    _add_columns(parser.add_argument)
    _add_cluster(parser.add_argument)
    add_device(parser.add_argument)
    add_kernels(parser.add_argument)
    add_cache_options(parser.add_argument)
    add_call_options(parser)


def _add_files(add: Add) -> None:
    about = "Files, and folders of files, that every node can read: paths or URIs (s3://...)."
    add("--input", nargs="+", required=True, type=path, metavar="PATH", help=about)
    about = "Folder for the output that every node can write: a path or a URI."
    add("--output", required=True, type=path, metavar="PATH", help=about)
    about = "Format of input and output."
    add("--format", required=True, choices=("parquet", "jsonl", "csv"), help=about)
    add("--resume", action="store_true", help="Go on with the job that the output is of.")
    add_model(add)


def _add_columns(add: Add) -> None:
    about = "Column of the texts. (default: text)"
    add("--text-column", default="text", metavar="NAME", help=about)
    source = "Language of all rows, such as en."
    add_languages(add, source, "Language to translate all rows into.", required=False)
    add("--source-lang-column", metavar="NAME", help="Column of the rows' languages.")
    add("--target-lang-column", metavar="NAME", help="Column of languages to translate into.")
    about = "Column of the translations, beside NAME_error and NAME_flag. (default: translation)"
    add("--output-column", default="translation", metavar="NAME", help=about)


def _add_cluster(add: Add) -> None:
    about = "Ray cluster: auto, HOST:PORT or ray://HOST:PORT. (default: this machine alone)"
    add("--address", metavar="ADDRESS", help=about)
    about = "Workers that translate. (default: as many as the cluster has room for)"
    add("--actors", type=int, metavar="N", help=about)
    about = "CPUs, and threads, of a worker. (default: 1)"
    add("--cpus", type=int, default=1, metavar="N", help=about)
    about = "GPUs of a worker; 0.5 shares one. (default: 0)"
    add("--gpus", type=float, default=0.0, metavar="X", help=about)
    about = (
        "Most rows of a shard, which is read, translated and written as a whole. (default: 2000)"
    )
    add("--shard-rows", type=int, default=2000, metavar="N", help=about)


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.jobs.ray_job import run

    job = _job(arguments)
    bar = progress(shown=True, total=100.0, text=_PROGRESS, rows=0, rate=0.0)
    began, before, first = time.monotonic(), 0.0, None

    with bar as update:

        def show(done: int, total: int) -> None:
            nonlocal before, first
            first = done if first is None else first
            share = 100.0 * done / max(total, 1)
            rate = (done - first) / max(time.monotonic() - began, 1e-9)
            update(advance=share - before, rows=done, rate=rate)
            before = share

        # Ray prints news of dying workers; standard output is the summary's.
        with contextlib.redirect_stdout(sys.stderr):
            summary = run(job, address=arguments.address, resume=arguments.resume, progress=show)
    print_lines(json.dumps(summary, indent=1, ensure_ascii=False).split("\n"))
    if summary["errors"]:
        warn(f"{summary['errors']} of {summary['rows']} rows could not be translated")
    return 0


def _job(arguments: argparse.Namespace) -> Any:
    from m2m100_onnx.jobs.columns import Columns
    from m2m100_onnx.jobs.ray_job import Job

    options = given_options(arguments)
    if "timeout" in options:
        raise InvalidInputError("timeout: expected none in a job, found one")
    columns = Columns(
        arguments.text_column,
        *(arguments.source_lang, arguments.source_lang_column),
        *(arguments.target_lang, arguments.target_lang_column),
        arguments.output_column,
    )
    opening = {"revision": arguments.revision, **kernels(arguments)}
    if arguments.device != "cpu":  # With --gpus it is what Ray gives.
        opening["device"] = arguments.device
    return Job(
        tuple(arguments.input),
        arguments.output,
        arguments.format,
        arguments.model,
        columns,
        options,
        {**opening, "cache_dir": arguments.cache_dir},
        arguments.shard_rows,
        arguments.actors,
        arguments.cpus,
        arguments.gpus,
    )
