"""`m2m100 cache`, and the flags by which other commands choose the packed cache.

Knows arguments and what is printed; the cache itself is `packed.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2m100_onnx.cli_files import print_lines
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.packed import CACHE_VARIABLE, DAY, Entry, PackedCache, cache_directory

__all__ = ["add_cache_arguments", "add_cache_options", "cache"]


def add_cache_options(add: Callable[..., argparse.Action]) -> None:
    """Adds --cache-dir and --no-cache to a command that opens graphs, as its `cache_dir`."""
    about = f"packed graphs, kept for later loads to map (default: {CACHE_VARIABLE} or XDG's)"
    add("--cache-dir", metavar="DIR", help=about)
    about = "neither read nor write packed graphs"
    add("--no-cache", action="store_const", const=False, dest="cache_dir", help=about)


def add_cache_arguments(add: Callable[..., argparse.Action]) -> None:
    """Adds the arguments of `cache`."""
    add("action", choices=("list", "verify", "clear"), help="all entries, if not told otherwise")
    add("--cache-dir", metavar="DIR", help=f"the folder (default: {CACHE_VARIABLE} or XDG's)")
    add("--stale", action="store_true", help="only entries whose bundle has changed or is gone")
    about = "only entries not used for N days"
    add("--older-than", type=float, metavar="N", default=0.0, help=about)
    add("--json", action="store_true", help="print JSON")


def cache(arguments: argparse.Namespace) -> int:
    """Lists, verifies or clears packed graphs; returns the exit status: 1 if one is damaged.

    Raises:
        InvalidInputError: there is no folder to work on, or the days are no number of days.
        OSError: an entry cannot be deleted.
    """
    directory = cache_directory(arguments.cache_dir)
    if directory is None:
        raise InvalidInputError(
            f"the cache is switched off ({CACHE_VARIABLE}=off); name a folder with --cache-dir"
        )
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(
            f"{directory}: expected the folder of a cache, found something else"
        )
    if not arguments.older_than >= 0:
        raise InvalidInputError(
            f"--older-than: expected a number of days, found {arguments.older_than}"
        )
    packed = PackedCache(directory)
    before = time.time() - arguments.older_than * DAY
    chosen = [
        entry
        for entry in packed.entries()
        if entry.used <= before and (entry.stale or not arguments.stale)
    ]
    sound = [arguments.action != "verify" or entry.verify() for entry in chosen]
    if arguments.action == "clear":
        for entry in chosen:
            entry.remove()
        # Those of writers at work are younger than an hour.
        for leftover in packed.leftovers(days=max(arguments.older_than, 1 / 24)):
            shutil.rmtree(leftover)
    facts = [_facts(entry, ok) for entry, ok in zip(chosen, sound, strict=True)]
    lines = [json.dumps(facts)] if arguments.json else _lines(directory, facts, arguments.action)
    print_lines(lines)
    return 0 if all(sound) else 1


def _facts(entry: Entry, sound: bool) -> dict[str, Any]:
    return {**asdict(entry), "directory": str(entry.directory), "damaged": not sound}


def _lines(directory: Path, facts: list[dict[str, Any]], action: str) -> Iterator[str]:
    for entry in facts:
        days = (time.time() - entry["used"]) / DAY
        notes = [name for name in ("stale", "damaged") if entry[name]]
        yield "  ".join(
            [
                f"{entry['size']:>15,}",
                f"used {days:.1f} days ago",
                f"onnxruntime {entry['onnxruntime'] or 'unknown'}",
                f"{entry['bundle']}/{entry['graph']}" if entry["bundle"] else "no readable record",
                *notes,
            ]
        )
    done = {"list": "", "verify": " verified", "clear": " cleared"}[action]
    size = sum(entry["size"] for entry in facts)
    noun = "entry" if len(facts) == 1 else "entries"
    yield f"{directory}: {len(facts)} {noun}{done}, {size:,} bytes"
