"""`m2m100 cache`, and the flags by which other commands choose the weights cache.

Knows arguments and what is printed; `model/weights_cache.py` is the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from m2m100_onnx.cli.arguments import Add, Commands, add_command, path
from m2m100_onnx.cli.output import has_terminal, print_lines, print_table
from m2m100_onnx.errors import InvalidInputError

if TYPE_CHECKING:
    from m2m100_onnx.model.weights_cache import Entry, WeightsCache

__all__ = ["add_cache_options", "add_parser"]

# That of the weights cache, whose module `--help` does not import.
_VARIABLE = "M2M100_ONNX_CACHE"
_DAY = 86400.0


def add_cache_options(add: Add) -> None:
    """Adds --cache-dir and --no-cache to a command that opens graphs, as its `cache_dir`."""
    _add_directory(add, "Folder of the weights cache.")
    about = "Neither read nor write the weights cache."
    add("--no-cache", action="store_const", const=False, dest="cache_dir", help=about)


def _add_directory(add: Add, about: str) -> None:
    default = f"(default: {_VARIABLE}, else m2m100-onnx in the user's cache folder)"
    add("--cache-dir", type=path, metavar="DIR", help=f"{about} {default}")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    add = add_command(
        commands, "cache", _run, "List, verify or clear the weights cache."
    ).add_argument
    about = "What to do with the entries; with all of them by default."
    add("action", choices=("list", "verify", "clear"), help=about)
    _add_directory(add, "The folder.")
    about = "Only entries whose bundle lies where it was and has changed."
    add("--stale", action="store_true", help=about)
    about = "Only entries that were not used for N days."
    add("--older-than", type=float, metavar="N", default=0.0, help=about)
    add("--json", action="store_true", help="Print JSON.")


def _run(arguments: argparse.Namespace) -> int:
    cache = _open(arguments)
    before = time.time() - arguments.older_than * _DAY
    chosen = [
        entry
        for entry in cache.entries()
        if entry.used <= before and (entry.stale or not arguments.stale)
    ]
    sound = [arguments.action != "verify" or entry.verify() for entry in chosen]
    if arguments.action == "clear":
        for entry in chosen:
            entry.remove()
        # Those of processes that write now are younger than an hour.
        cache.sweep(days=max(arguments.older_than, 1 / 24))
    facts = [_facts(entry, ok) for entry, ok in zip(chosen, sound, strict=True)]
    if arguments.json:
        print_lines([json.dumps(facts)])
    else:
        _print(facts)
        print_lines([_sum(str(cache.directory), facts, arguments.action)])
    return 0 if all(sound) else 1


def _open(arguments: argparse.Namespace) -> WeightsCache:
    from m2m100_onnx.model.weights_cache import WeightsCache, cache_directory

    directory = cache_directory(arguments.cache_dir)
    if directory is None:
        raise InvalidInputError(
            f"the weights cache is switched off ({_VARIABLE}={os.environ.get(_VARIABLE)}); name a "
            "folder with --cache-dir"
        )
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(
            f"{directory}: expected the folder of a cache, found something else"
        )
    if not arguments.older_than >= 0:
        raise InvalidInputError(
            f"--older-than: expected a number of days, found {arguments.older_than}"
        )
    return WeightsCache(directory)


def _facts(entry: Entry, sound: bool) -> dict[str, Any]:
    return {**asdict(entry), "directory": str(entry.directory), "damaged": not sound}


def _cells(facts: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, str, str]]:
    for entry in facts:
        yield (
            f"{entry['size']:,}",
            f"{(time.time() - entry['used']) / _DAY:.1f} days ago",
            entry["onnxruntime"] or "unknown",
            f"{entry['bundle']}/{entry['graph']}" if entry["bundle"] else "no readable record",
            "  ".join(name for name in ("stale", "damaged") if entry[name]),
        )


def _print(facts: list[dict[str, Any]]) -> None:
    if has_terminal() and facts:
        heading = ("bytes", "used", "onnxruntime", "graph", "")
        print_table(heading, _cells(facts), right=("bytes", "used"))
        return
    print_lines(
        f"{size:>15}  used {used}  onnxruntime {version}  {graph}  {notes}".rstrip()
        for size, used, version, graph, notes in _cells(facts)
    )


def _sum(directory: str, facts: list[dict[str, Any]], action: str) -> str:
    done = {"list": "", "verify": " verified", "clear": " cleared"}[action]
    size = sum(entry["size"] for entry in facts)
    noun = "entry" if len(facts) == 1 else "entries"
    return f"{directory}: {len(facts)} {noun}{done}, {size:,} bytes"
