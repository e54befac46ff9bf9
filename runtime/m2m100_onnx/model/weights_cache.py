"""The weights cache: graphs as onnxruntime optimized them, with weights packed for this processor.

onnxruntime copies each matrix into the layout that its kernel needs, in private memory of the
process. This cache writes that copy to disk once. Every later process maps it, shares it with the
others, and has a tenth of the private memory. The layout belongs to one build of onnxruntime and
one kind of processor, so the cache is rebuilt at need and is never part of a bundle. It holds each
weight twice, since onnxruntime packs the raw one again at every opening to compare hashes.

Knows folders, keys and damage; knows no onnxruntime, which `sessions.py` brings.

An entry is a folder `packed-<key>` with the graph, its weights, and a record of what they were made
from. `_origin`, `_processor` and the caller's facts make up the key. An entry appears as a whole,
by a rename, or not at all. Each use checks the record, size and modification time of the files, and
all of the graph. Of the weights it compares 16 pieces of 256 KiB, the first, the last and random
others, so damage to few pieces may take several loads to be found; `m2m100 cache verify` compares
all. The check is no defence against the user who owns the files. Others are kept out: a folder that
they may write to is not used.
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

from m2m100_onnx.bundle.bundle import file_states
from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, sha256_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.weights_cache_files import damage, rewrite, sync
from m2m100_onnx.process import renew_in_children

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
GRAPH = "graph.onnx"
WEIGHTS = "graph.onnx_data"

_LOGGER = logging.getLogger("m2m100_onnx")
_RECORD, _LAYOUT = "entry.json", 2
_NAME = re.compile(r"packed-[0-9a-f]{32}")
_PARTIAL = ".packed-"
DAY, _UNUSED_DAYS = 86400.0, 30.0
# The names in /proc/cpuinfo of what kernels are chosen by, on x86 and on Arm.
_PROCESSOR_LINES = {
    *("vendor_id", "cpu family", "model", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
}


def cache_directory(
    given: str | os.PathLike[str] | Literal[False] | None, precision: Precision | None = None
) -> Path | None:
    """Returns the folder of the cache, or None for no cache.

    Args:
        given: a folder; False for no cache; None for the environment's choice: `M2M100_ONNX_CACHE`,
            which is a folder or `off`, else `m2m100-onnx` in `XDG_CACHE_HOME` or `~/.cache`.
        precision: of the bundle. fp32 and fp16 are cached only in a folder that somebody named,
            since their entries take several times the size of a large bundle.

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
        # The XDG specification ignores relative paths.
        base = Path(root) if Path(root).is_absolute() else Path("~/.cache")
        given = base / "m2m100-onnx"
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise InvalidInputError(f"cache_dir: expected a folder, False or None, found {given!r}")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # There is no home folder.
        return None


class PackingError(Exception):
    """onnxruntime could not write a packed graph; the message is its own."""


@dataclass(frozen=True)
class Entry:
    """A packed graph in the cache.

    Attributes:
        directory: its folder.
        bundle: the folder of its bundle; empty if its record is unreadable.
        graph: the graph's file name there.
        onnxruntime: the version that wrote it; no other may use it.
        size: bytes on disk.
        created: seconds since the epoch.
        used: when it was last opened, in seconds since the epoch.
        stale: whether its bundle has changed or is gone, so that no one can use it again.
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
        """Deletes the entry; processes that have it open keep what they mapped.

        Raises:
            OSError: it cannot be deleted.
        """
        _remove(self.directory)

    def verify(self) -> bool:
        """Says whether every byte is as it was written."""
        try:
            record = json.loads((self.directory / _RECORD).read_bytes())
            return _damage(self.directory, record, sample=False) is None
        except (OSError, ValueError, KeyError, TypeError):
            return False


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
        """Makes a new lock: in a forked process, a thread of the parent may hold the old one."""
        self._lock = threading.Lock()  # Several threads open graphs.

    def graph(
        self, source: Path, facts: Mapping[str, Any], write: Callable[[Path, str], None]
    ) -> Path | None:
        """Returns the packed form of a graph; writes it first if it is missing.

        Args:
            source: the graph in its bundle.
            facts: what else the packed form depends on, as JSON.
            write: writes the packed graph to the path of the first argument, and the weights beside
                it, to the file name of the second; raises `PackingError`.

        Returns:
            The path to open. None where the cache can be neither read nor written; a warning says
            why, once.
        """
        try:
            if not self._trusted():
                return None
            wanted = {**facts, **_origin(source), "processor": _processor()}
            key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
            entry = self.directory / f"packed-{key}"
            problem = _problem(entry, wanted)
            if problem is not None and entry.exists():
                # Another process may have put it in place after the first look.
                problem = _problem(entry, wanted)
            if problem is not None:
                if not self._writable:
                    return None
                if entry.exists():
                    _LOGGER.warning("packing %s again: %s", source, problem)
                    _remove(entry)
                self._write(entry, wanted, source, write)
                # Another process may have been faster, so this may be its entry.
                problem = _problem(entry, wanted)
                if problem is not None:
                    self._warn(f"the new entry cannot be used: {problem}")
                    return None
            _touch(entry / _RECORD)
            return entry / GRAPH
        # A cache must not fail a load. What a signal handler raises is no failure of the cache.
        except (OSError, ValueError, PackingError) as error:
            self._writable = False
            self._warn(str(error).split("\n")[0])
            return None

    def reject(self, graph: Path, reason: object) -> None:
        """Removes an entry that onnxruntime could not open."""
        self._warn(f"{graph} cannot be opened: {reason}")
        self._writable = False
        shutil.rmtree(graph.parent, ignore_errors=True)

    def entries(self) -> Iterator[Entry]:
        """Yields the entries of the folder by name, damaged ones included."""
        for directory in sorted(self.directory.glob("packed-*")):
            if not _NAME.fullmatch(directory.name) or not directory.is_dir():
                continue
            try:
                used = directory.stat().st_mtime
                size = sum(path.stat().st_size for path in directory.iterdir())
            except OSError:  # Another process removed it just now, or it is another user's.
                continue
            created, stale, facts = used, True, ("", "", "")
            # An entry is stale if it or its bundle cannot be read.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                used = (directory / _RECORD).stat().st_mtime
                record = json.loads((directory / _RECORD).read_bytes())
                wanted, created = record["wanted"], float(record["created"])
                facts = (wanted["bundle"], wanted["graph"], wanted["onnxruntime"])
                origin = _origin(Path(wanted["bundle"], wanted["graph"]))
                stale = any(wanted.get(name) != value for name, value in origin.items())
            yield Entry(directory, *facts, size, created, used, stale)

    def leftovers(self, *, days: float = 0.0) -> Iterator[Path]:
        """Yields folders that killed writers left behind at least `days` ago."""
        for path in self.directory.glob(f"{_PARTIAL}*"):
            # Another process may put one in place at this moment.
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
            # After the rename there is nothing to remove.
            shutil.rmtree(partial, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes entries that are stale, or that nobody has used for 30 days."""
        oldest = time.time() - _UNUSED_DAYS * DAY
        for entry in self.entries():
            if entry.stale or entry.used < oldest:
                shutil.rmtree(entry.directory, ignore_errors=True)
        for path in self.leftovers(days=1):
            shutil.rmtree(path, ignore_errors=True)

    def _trusted(self) -> bool:
        problem = _others_may_write(self.directory) if self.directory.exists() else None
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


def _origin(source: Path) -> dict[str, Any]:
    """Returns what a packed graph is made from, the part of the key that the bundle gives.

    Hashing half a gigabyte takes longer than opening it. So size and modification time stand for
    the files, and the hash of the manifest, which has their SHA-256.
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
    """Returns a hash of what kernels are chosen by: kind of processor and instruction sets."""
    facts = [platform.machine(), platform.system()]
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        facts += sorted(f"{n.strip()}:{v}" for n, _, v in pairs if n.strip() in _PROCESSOR_LINES)
    except OSError:
        facts.append(platform.processor())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _problem(entry: Path, wanted: Mapping[str, Any]) -> str | None:
    """Says why an entry must not be used; None if it may."""
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
    """Says how an entry's files differ from what was written; None if they do not."""
    files = record["files"]
    found = (damage(entry / name, files[name], sample=sample) for name in (GRAPH, WEIGHTS))
    return next(filter(None, found), None)


def _others_may_write(directory: Path) -> str | None:
    """Says who else may write to a folder, root excepted; None if nobody may."""
    if not hasattr(os, "geteuid"):  # Windows, where a profile's folders are private.
        return None
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{directory} has mode {stat.S_IMODE(status.st_mode):o}; run `chmod go-w` on it"
    return None


def _remove(entry: Path) -> None:
    """Deletes an entry; a rename first makes sure that nobody opens half of it."""
    aside = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=entry.parent))
    try:
        with contextlib.suppress(FileNotFoundError):  # Another process was faster.
            entry.rename(aside / entry.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _touch(record: Path) -> None:
    """Records that an entry was used, where permissions allow it."""
    with contextlib.suppress(OSError):
        os.utime(record)
