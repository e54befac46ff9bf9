"""The packed cache: graphs as onnxruntime optimized them and packed their weights, on disk.

onnxruntime copies a matrix into the layout that its kernel likes best, in private memory of each
process. Written out once and mapped by whoever opens the graph next, that copy is shared, and a
process is left with a tenth of the private memory. The layout belongs to one build of onnxruntime
and one kind of processor, so this is a cache, to be rebuilt, and never part of a bundle. It has
each weight twice: onnxruntime packs the raw one again at every opening to compare hashes.

Knows folders, keys and damage; knows no onnxruntime, which `sessions.py` brings.

An entry is a folder `packed-<key>` with the graph, its weights and a record of what they came from;
it appears whole (renamed into place) or not at all. Before it is used, a record that is not
what it should be, a file of another size or time of change, and any damage to the graph are noticed
for certain. Of the weights 16 pieces of 256 KiB are compared, others each time, among them the
first and the last: what a failing disk does to fewer pieces may take several loads to be noticed,
which `verify` (`m2m100 cache verify`) spares those who have a suspicion. What the same user does on
purpose is not noticed; what others could do is, since a folder that others may write is not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m2m100_onnx.bundle import MANIFEST_FILE, Precision, file_states, sha256_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.forking import renew_in_children
from m2m100_onnx.packed_files import damage, rewrite, sync

__all__ = ["CACHE_VARIABLE", "DAY", "GRAPH", "WEIGHTS", "Entry", "PackedCache", "cache_directory"]

CACHE_VARIABLE = "M2M100_ONNX_CACHE"
GRAPH = "graph.onnx"
WEIGHTS = "graph.onnx_data"

_LOGGER = logging.getLogger("m2m100_onnx")
_RECORD, _LAYOUT = "entry.json", 2
_NAME = re.compile(r"packed-[0-9a-f]{32}")
_PARTIAL = ".packed-"
DAY, _UNUSED_DAYS = 86400.0, 30.0
# What /proc/cpuinfo calls the things that kernels are chosen by, on x86 and on Arm.
_PROCESSOR_LINES = {
    *("vendor_id", "cpu family", "model", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
}


def cache_directory(
    given: str | os.PathLike[str] | Literal[False] | None, precision: Precision | None = None
) -> Path | None:
    """Where packed graphs are kept, or None: nowhere.

    Args:
        given: a folder; False for none; None for the environment's: `M2M100_ONNX_CACHE`, which is a
            folder or `off`, else `m2m100-onnx` in `XDG_CACHE_HOME` or `~/.cache`.
        precision: of the bundle. A folder that nobody named takes none in fp32 and fp16, which take
            several times the size of a bundle that is large as it is.

    Raises:
        InvalidInputError: `given` is something else.
    """
    if given is None:
        given = os.environ.get(CACHE_VARIABLE) or None
        if given == "off":
            return None
    if given is False:
        return None
    if given is None:
        if precision in ("fp32", "fp16"):
            return None
        root = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification has relative paths ignored.
        base = Path(root) if Path(root).is_absolute() else Path("~/.cache")
        given = base / "m2m100-onnx"
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise InvalidInputError(f"cache_dir: expected a folder, False or None, found {given!r}")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # No home to be found.
        return None


@dataclass(frozen=True)
class Entry:
    """A packed graph in the cache.

    Attributes:
        directory: its folder.
        bundle: the folder of the bundle it was made from; empty if its record cannot be read.
        graph: the graph's file name there.
        onnxruntime: the version that made it and alone may use it.
        size: bytes on disk.
        created: when it was made, in seconds since the epoch.
        used: when it was last opened, likewise.
        stale: whether its bundle has changed or is gone, so that it can never be used again.
    """

    directory: Path
    bundle: str
    graph: str
    onnxruntime: str
    size: int
    created: float
    used: float
    stale: bool

    def remove(self) -> None:
        """Deletes it; processes that have it open keep what they mapped.

        Raises:
            OSError: it cannot be deleted.
        """
        _remove(self.directory)

    def verify(self) -> bool:
        """Whether every byte is as it was written."""
        try:
            record = json.loads((self.directory / _RECORD).read_bytes())
            return _damage(self.directory, record, sample=False) is None
        except (OSError, ValueError, KeyError, TypeError):
            return False


class PackedCache:
    """A folder of packed graphs that several processes may use at once."""

    def __init__(self, directory: Path) -> None:
        """Names the folder; it is made when the first entry is written."""
        self.directory = directory
        self._warned = False
        self._writable = True
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Takes a lock that nobody holds, as threads of another process may hold the one before."""
        self._lock = threading.Lock()  # Graphs are opened side by side.

    def graph(
        self, source: Path, facts: Mapping[str, Any], write: Callable[[Path, str], None]
    ) -> Path | None:
        """The packed form of a graph, written first if it is not there.

        Args:
            source: the graph in its bundle.
            facts: what else the packed form depends on, as JSON.
            write: packs the graph into the file it is given, and the weights into a file of the
                name it is given, beside it.

        Returns:
            The path to open, or None where the cache can be neither read nor written; then a
            warning says why, once. Never raises.
        """
        try:
            if not self._trusted():
                return None
            wanted = {**facts, **_origin(source), "processor": _processor()}
            key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
            entry = self.directory / f"packed-{key}"
            problem = _problem(entry, wanted)
            if problem is not None and entry.exists():
                # Another process may have put it in place a moment after it was looked for.
                problem = _problem(entry, wanted)
            if problem is not None:
                if not self._writable:
                    return None
                if entry.exists():
                    _LOGGER.warning("%s is packed again: %s", source, problem)
                    _remove(entry)
                self._write(entry, wanted, source, write)
                # Another process may have been faster, and its copy is not ours to believe.
                problem = _problem(entry, wanted)
                if problem is not None:
                    self._warn(f"what was just written cannot be used: {problem}")
                    return None
            _touch(entry / _RECORD)
            return entry / GRAPH
        # onnxruntime's errors share no base class but Exception, and a cache must not fail a load.
        except Exception as error:
            self._writable = False
            self._warn(str(error).split("\n")[0])
            return None

    def reject(self, graph: Path, reason: object) -> None:
        """Removes an entry that could not be opened after all."""
        self._warn(f"{graph} cannot be opened: {reason}")
        self._writable = False
        shutil.rmtree(graph.parent, ignore_errors=True)

    def entries(self) -> Iterator[Entry]:
        """What the folder holds, by name, damaged entries included."""
        for directory in sorted(self.directory.glob("packed-*")):
            if not _NAME.fullmatch(directory.name) or not directory.is_dir():
                continue
            try:
                used = directory.stat().st_mtime
                size = sum(path.stat().st_size for path in directory.iterdir())
            except OSError:  # Another process has just removed it, or it is another user's.
                continue
            created, stale, facts = used, True, ("", "", "")
            # What cannot be read, in the cache or in the bundle, is stale.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                used = (directory / _RECORD).stat().st_mtime
                record = json.loads((directory / _RECORD).read_bytes())
                wanted, created = record["wanted"], float(record["created"])
                facts = (wanted["bundle"], wanted["graph"], wanted["onnxruntime"])
                origin = _origin(Path(wanted["bundle"], wanted["graph"]))
                stale = any(wanted.get(name) != value for name, value in origin.items())
            yield Entry(directory, *facts, size, created, used, stale)

    def leftovers(self, *, days: float = 0.0) -> Iterator[Path]:
        """Folders of writers that were killed, if no younger than `days`."""
        for path in self.directory.glob(f"{_PARTIAL}*"):
            # One that another process puts in place at this moment is none.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= time.time() - days * DAY:
                    yield path

    def _write(
        self,
        entry: Path,
        wanted: Mapping[str, Any],
        source: Path,
        write: Callable[[Path, str], None],
    ) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tidy()
        needed = 2 * sum(size for size, _ in wanted["files"].values())
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(f"expected {needed:,} bytes of free space, found {free:,}")
        _LOGGER.info("packing %s into %s, once", source, self.directory)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.directory))
        try:
            write(partial / GRAPH, WEIGHTS)
            files = {path.name: rewrite(path) for path in sorted(partial.iterdir())}
            record = {"wanted": wanted, "created": time.time(), "files": files}
            (partial / _RECORD).write_text(json.dumps(record))
            for path in (*partial.iterdir(), partial):
                sync(path)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():
                    raise
            sync(self.directory)
        finally:
            # Nothing is left of it if it was put in place.
            shutil.rmtree(partial, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes what can never be used again, and what has not been for long."""
        oldest = time.time() - _UNUSED_DAYS * DAY
        for entry in self.entries():
            if entry.stale or entry.used < oldest:
                shutil.rmtree(entry.directory, ignore_errors=True)
        for path in self.leftovers(days=1):
            shutil.rmtree(path, ignore_errors=True)

    def _trusted(self) -> bool:
        problem = _others_may_write(self.directory) if self.directory.exists() else None
        if problem is not None:
            self._warn(f"a cache holds code to run, so no one else may write to it: {problem}")
        return problem is None

    def _warn(self, reason: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            _LOGGER.warning(
                "the packed cache %s is not used (more memory, slower start): %s",
                self.directory,
                reason,
            )


def _origin(source: Path) -> dict[str, Any]:
    """What a packed graph is made from.

    Hashing half a gigabyte takes longer than opening it, so that files are told by size and time of
    change; the manifest, which has their SHA-256, is hashed.
    """
    manifest = source.parent / MANIFEST_FILE
    return {
        "layout": _LAYOUT,
        "bundle": str(source.parent.resolve()),
        "graph": source.name,
        "manifest": sha256_of(manifest) if manifest.is_file() else None,
        "files": file_states(source.parent),
    }


@functools.cache
def _processor() -> str:
    """A hash of what kernels are chosen by: kind of processor and its instruction sets."""
    facts = [platform.machine(), platform.system()]
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        facts += sorted(f"{n.strip()}:{v}" for n, _, v in pairs if n.strip() in _PROCESSOR_LINES)
    except OSError:
        facts.append(platform.processor())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _problem(entry: Path, wanted: Mapping[str, Any]) -> str | None:
    """Why an entry must not be used, or None."""
    try:
        record = json.loads((entry / _RECORD).read_bytes())
        if record["wanted"] != json.loads(json.dumps(wanted)):
            return f"{entry} was made from something else"
        return _others_may_write(entry) or _damage(entry, record, sample=True)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{entry / _RECORD} is damaged: {error}"


def _damage(entry: Path, record: Mapping[str, Any], *, sample: bool) -> str | None:
    """What differs in an entry's files from what was written, or None."""
    files = record["files"]
    found = (damage(entry / name, files[name], sample=sample) for name in (GRAPH, WEIGHTS))
    return next(filter(None, found), None)


def _others_may_write(directory: Path) -> str | None:
    """Who else might have put something there, or None; root may do anything anyway."""
    if not hasattr(os, "geteuid"):  # Windows, where a profile's folders are private.
        return None
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{directory} has mode {stat.S_IMODE(status.st_mode):o}; run `chmod go-w` on it"
    return None


def _remove(entry: Path) -> None:
    """Deletes an entry; first out of the way, so that nobody opens half of it."""
    aside = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=entry.parent))
    try:
        with contextlib.suppress(FileNotFoundError):  # Another process was faster.
            entry.rename(aside / entry.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _touch(record: Path) -> None:
    """Notes that an entry was used, where that is allowed."""
    with contextlib.suppress(OSError):
        os.utime(record)
