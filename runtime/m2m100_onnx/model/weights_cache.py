"""The weights cache: graphs as onnxruntime optimized them, with weights packed for this processor.

onnxruntime copies each matrix into the layout that its kernel needs, in private memory of the
process. This cache writes that copy to disk once. Every later process maps it, shares it with the
others, and has a tenth of the private memory. The layout belongs to one build of onnxruntime and
one kind of processor, so the cache is rebuilt at need and is never part of a bundle. It holds each
weight twice, since onnxruntime packs the raw one again at every opening to compare hashes.

Knows folders, keys and damage; knows no onnxruntime, which `sessions.py` brings.

An entry appears as a whole, by a rename, or not at all. One process writes it while others wait for
it, a bounded time. Nobody deletes a sound entry that was used within 30 days: other bundles,
processes and containers may share the folder.

Each use checks the record, size and modification time of the files, and all of the graph. Of the
weights it compares 16 pieces of 256 KiB, the first, the last and random others, so damage to few
pieces may take several loads to be found; `m2m100 cache verify` compares all. So does the first use
of a copy whose times differ. The check is no defence against the user who owns the files. Others
are kept out: a folder that they may write to is not used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import sha256_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.weights_cache_entry import (
    GRAPH,
    PARTIAL,
    RECORD,
    WEIGHTS,
    Entry,
    Source,
    discard,
    key_of,
    others_may_write,
    problem_of,
    processor,
    read_entry,
    remove,
)
from m2m100_onnx.model.weights_cache_files import rewrite, sync
from m2m100_onnx.model.weights_cache_lock import LOCK, file_lock
from m2m100_onnx.process import raised_by_signal_handler, renew_in_children, tolerate

__all__ = [
    "CACHE_VARIABLE",
    "DAY",
    "GRAPH",
    "WEIGHTS",
    "Entry",
    "PackingError",
    "WeightsCache",
    "cache_directory",
]

CACHE_VARIABLE = "M2M100_ONNX_CACHE"
DAY = 86400.0

_LOGGER = logging.getLogger("m2m100_onnx")
_UNUSED_DAYS = 30.0
_PATIENCE = 30.0
"""Seconds to wait for another process that packs the same graph; packing takes a few."""
_OFF = frozenset({"0", "off", "false", "no", "none", "disabled"})
_ON = frozenset({"1", "on", "true", "yes", "enabled"})


def cache_directory(
    given: str | os.PathLike[str] | Literal[False] | None, precision: Precision | None = None
) -> Path | None:
    """Returns the folder of the cache, or None for no cache.

    Args:
        given: a folder; False for no cache; None for the environment's choice: `M2M100_ONNX_CACHE`,
            which is a folder or `off`, else `m2m100-onnx` in `XDG_CACHE_HOME` or `~/.cache`. `0`,
            `false` and `no` mean off, `1`, `true`, `yes` and `on` the usual folder, in any case.
        precision: of the bundle. fp32 and fp16 are cached only in a folder that somebody named,
            since their entries take several times the size of a large bundle.

    Raises:
        InvalidInputError: `given` is something else.
    """
    if given is None:
        given = os.environ.get(CACHE_VARIABLE, "").strip() or None
        word = (given or "").lower()
        if word in _OFF:
            return None
        if word in _ON:
            given = None
    if given is False:
        return None
    if given is None:
        if precision in ("fp32", "fp16"):
            return None
        root = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification ignores relative paths.
        base = Path(root) if Path(root).is_absolute() else Path("~/.cache")
        given = base / "m2m100-onnx"
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise InvalidInputError(f"cache_dir: expected a folder, False or None, found {given!r}")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:  # There is no home folder.
        if raised_by_signal_handler(error):
            raise
        return None


class PackingError(Exception):
    """A packed graph could not be written; the message says why."""


class WeightsCache:
    """A folder of packed graphs; several processes may use it at the same time."""

    def __init__(self, directory: Path) -> None:
        """Takes the folder, which the first entry that is written creates."""
        self.directory = directory
        self._warned = False
        self._writable = True
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Makes new locks: in a forked process, a thread of the parent may hold the old ones."""
        self._lock = threading.Lock()  # Several threads open graphs.
        self._hashing = threading.Lock()
        self._hashes: dict[tuple[object, ...], str] = {}

    def graph(
        self,
        path: Path,
        facts: Mapping[str, Any],
        write: Callable[[Path, str], None],
        hashes: Mapping[str, str] | None = None,
    ) -> Path | None:
        """Returns the packed form of a graph; writes it first if it is missing.

        Args:
            path: the graph in its bundle.
            facts: what else the packed form depends on, as JSON.
            write: writes the packed graph to the path of the first argument, and the weights beside
                it, to the file name of the second; raises `PackingError`.
            hashes: the SHA-256 of the bundle's files by name, where it has a manifest.

        Returns:
            The path to open. None where the cache can be neither read nor written; a warning says
            why, once.
        """
        try:
            if not self._trusted():
                return None
            source = Source(path, hashes or {})
            wanted = {**facts, **source.origin(), "processor": processor()}
            entry = self.directory / key_of(wanted)
            if problem_of(entry, wanted) is not None:
                if not self._writable:
                    return None
                problem = self._pack(entry, wanted, source, write)
                if problem is not None:
                    self._writable = False
                    self._warn(problem)
                    return None
            with tolerate(OSError):  # It is used now; not all may record that.
                os.utime(entry / RECORD)
            return entry / GRAPH
        # A cache must not fail a load. What a signal handler raises is no failure of the cache.
        except (OSError, ValueError, PackingError) as error:
            if raised_by_signal_handler(error):
                raise
            self._writable = False
            self._warn(str(error).split("\n")[0])
            return None

    def reject(self, graph: Path, reason: object) -> None:
        """Removes an entry that onnxruntime could not open, though it opens the bundle's graph."""
        self._warn(f"{graph} cannot be opened: {reason}")
        self._writable = False
        discard(graph.parent)

    def entries(self) -> Iterator[Entry]:
        """Yields the entries of the folder by name, damaged ones included."""
        found = map(read_entry, sorted(self.directory.glob("packed-*")))
        return filter(None, found)

    def sweep(self, *, days: float) -> None:
        """Removes what killed writers left behind at least `days` ago."""
        for pattern in (f"{PARTIAL}*", f"{LOCK}*"):
            for path in self.directory.glob(pattern):
                # Another process may put one in place at this moment.
                with tolerate(OSError):
                    if path.stat().st_mtime > time.time() - days * DAY:
                        continue
                    if path.is_dir():
                        discard(path)
                    else:
                        path.unlink()

    def _pack(
        self,
        entry: Path,
        wanted: Mapping[str, Any],
        source: Source,
        write: Callable[[Path, str], None],
    ) -> str | None:
        """Makes an entry, alone among all processes; says why there is none to use."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self.directory / f"{LOCK}{entry.name}", _PATIENCE) as held:
            # Another process may have put it in place after the first look.
            problem = problem_of(entry, wanted)
            if problem is None:
                return None
            if not held:
                return f"another process has been packing {source.path} for {_PATIENCE:g} s"
            if entry.exists():
                _LOGGER.warning("packing %s again: %s", source.path, problem)
                remove(entry)
            self._write(entry, wanted, source, write)
        # Another process may have been faster, so this may be its entry.
        problem = problem_of(entry, wanted)
        return problem and f"the new entry cannot be used: {problem}"

    def _write(
        self,
        entry: Path,
        wanted: Mapping[str, Any],
        source: Source,
        write: Callable[[Path, str], None],
    ) -> None:
        self._tidy()
        states = source.states()
        needed = 2 * sum(size for size, _ in states.values())
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise PackingError(f"expected {needed:,} bytes of free space, found {free:,}")
        self._check(source, states)
        _LOGGER.info("packing %s into %s, once", source.path, self.directory)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.directory))
        try:
            write(partial / GRAPH, WEIGHTS)
            if source.states() != states:
                raise PackingError(f"{source.path} was changed while it was packed")
            files = {path.name: rewrite(path) for path in sorted(partial.iterdir())}
            bundle = str(source.path.parent.resolve())
            record = {"wanted": wanted, "bundle": bundle, "created": time.time(), "files": files}
            (partial / RECORD).write_text(json.dumps(record))
            for path in (*partial.iterdir(), partial):
                sync(path)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():
                    raise
            sync(self.directory)
        finally:
            # After the rename there is nothing to remove.
            discard(partial)

    def _check(self, source: Source, states: Mapping[str, list[int]]) -> None:
        """Compares what is about to be packed with the hashes of the manifest.

        A later load does not read the bundle's weights, and other copies of the bundle use the
        entry too. So what is packed must be what the manifest says.
        """
        for name, state in states.items():
            expected = source.hashes.get(name)
            if expected is None:
                continue
            path = source.path.parent / name
            with self._hashing:  # The graphs of a bundle share their weights: hash them once.
                key = (path, *state)
                if key not in self._hashes:
                    self._hashes[key] = sha256_of(path)
                found = self._hashes[key]
            if found != expected:
                raise PackingError(f"{path}: expected SHA-256 {expected}, found {found}")

    def _tidy(self) -> None:
        """Removes entries that nobody has used for 30 days, and what killed writers left."""
        oldest = time.time() - _UNUSED_DAYS * DAY
        for entry in self.entries():
            if entry.used < oldest:
                discard(entry.directory)
        self.sweep(days=1)

    def _trusted(self) -> bool:
        problem = others_may_write(self.directory) if self.directory.exists() else None
        if problem is not None:
            self._warn(f"other users may write to it, and it holds code that runs: {problem}")
        return problem is None

    def _warn(self, reason: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            _LOGGER.warning(
                "the weights cache %s is not used (more memory, slower start): %s",
                self.directory,
                reason,
            )
