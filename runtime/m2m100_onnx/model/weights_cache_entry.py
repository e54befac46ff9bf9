"""An entry of the weights cache: what it was made from, and whether it may be used.

An entry is a folder `packed-<key>` with the graph, its weights, and a record. The key is made of
the SHA-256 of the graph and of its weights, which the manifest has, of the processor, and of what
the caller adds. So an entry serves every copy of a bundle, wherever it lies and whatever the times
of its files. A folder without a manifest has no hashes. Its entries belong to its path and to the
times of its files, since hashing gigabytes takes longer than opening them.

Knows folders, records and keys; makes no entries.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.folder import file_states
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest
from m2m100_onnx.model.weights_cache_files import damage
from m2m100_onnx.process import raised_by_signal_handler, tolerate

__all__ = [
    "GRAPH",
    "PARTIAL",
    "RECORD",
    "WEIGHTS",
    "Entry",
    "Source",
    "discard",
    "key_of",
    "others_may_write",
    "problem_of",
    "processor",
    "read_entry",
    "remove",
]

GRAPH = "graph.onnx"
WEIGHTS = "graph.onnx_data"
RECORD = "entry.json"
PARTIAL = ".packed-"
_LAYOUT = 3
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)
_NAME = re.compile(r"packed-[0-9a-f]{32}")
# The names in /proc/cpuinfo of what kernels are chosen by, on x86 and on Arm.
_PROCESSOR_LINES = {
    *("vendor_id", "cpu family", "model", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
}


@dataclass(frozen=True)
class Source:
    """A graph of a bundle, and its weights.

    Attributes:
        path: the graph's file.
        hashes: the SHA-256 of the bundle's files by name, from its manifest; empty without one.
    """

    path: Path
    hashes: Mapping[str, str]

    def states(self) -> dict[str, list[int]]:
        """Returns size and time of change of the graph and of the weights files beside it."""
        found = file_states(self.path.parent)
        name = self.path.name
        return {n: state for n, state in found.items() if n == name or not n.endswith(".onnx")}

    def origin(self) -> dict[str, Any]:
        """Returns the part of the key that the bundle gives."""
        states = self.states()
        if all(name in self.hashes for name in states):
            hashes = {name: self.hashes[name] for name in states}
            return {"layout": _LAYOUT, "graph": self.path.name, "sha256": hashes}
        return {
            "layout": _LAYOUT,
            "graph": self.path.name,
            "bundle": str(self.path.parent.resolve()),
            "files": states,
        }


@dataclass(frozen=True)
class Entry:
    """A packed graph in the cache.

    Attributes:
        directory: its folder.
        bundle: the folder of the bundle that it was made from; other copies of the bundle may use
            it too. Empty if its record is unreadable.
        graph: the graph's file name there.
        onnxruntime: the version that wrote it; no other may use it.
        size: bytes on disk.
        created: seconds since the epoch.
        used: when it was last opened, in seconds since the epoch.
        stale: whether its record is unreadable, or its bundle is still there and has changed. A
            folder that is not visible from here may be another container's.
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
        remove(self.directory)

    def verify(self) -> bool:
        """Says whether every byte is as it was written."""
        with tolerate(*_UNREADABLE):
            record = json.loads((self.directory / RECORD).read_bytes())
            return _damage(self.directory, record, sample=False) is None
        return False


def read_entry(directory: Path) -> Entry | None:
    """Returns the entry of a folder, damaged or not; None if it is none, or another user's."""
    if not _NAME.fullmatch(directory.name) or not directory.is_dir():
        return None
    try:
        used = created = directory.stat().st_mtime
        size = sum(path.stat().st_size for path in directory.iterdir())
    except OSError as error:  # Another process removed it just now, or it is another user's.
        if raised_by_signal_handler(error):
            raise
        return None
    stale, facts = True, ("", "", "")
    with tolerate(*_UNREADABLE):
        used = (directory / RECORD).stat().st_mtime
        record = json.loads((directory / RECORD).read_bytes())
        wanted, created = record["wanted"], float(record["created"])
        facts = (record["bundle"], wanted["graph"], wanted["onnxruntime"])
        stale = _has_changed(Path(record["bundle"]), wanted)
    return Entry(directory, *facts, size, created, used, stale)


def _has_changed(bundle: Path, wanted: Mapping[str, Any]) -> bool:
    """Says whether a bundle lies where it was and is no longer what an entry was made from."""
    with tolerate(OSError, ValueError):  # A `BundleError` is a ValueError.
        hashes = {}
        if (bundle / MANIFEST_FILE).exists():
            hashes = {name: file.sha256 for name, file in Manifest.read(bundle).files.items()}
        origin = Source(bundle / wanted["graph"], hashes).origin()
        return any(wanted.get(name) != value for name, value in origin.items())
    return False


def key_of(wanted: Mapping[str, Any]) -> str:
    """Returns the name of the entry that is made from `wanted`, without its folder."""
    text = json.dumps(wanted, sort_keys=True)
    return f"packed-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@functools.cache
def processor() -> str:
    """Returns a hash of what kernels are chosen by: kind of processor and instruction sets."""
    facts = [platform.machine(), platform.system()]
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        facts += sorted(f"{n.strip()}:{v}" for n, _, v in pairs if n.strip() in _PROCESSOR_LINES)
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        facts.append(platform.processor())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def problem_of(entry: Path, wanted: Mapping[str, Any]) -> str | None:
    """Says why an entry must not be used; None if it may."""
    try:
        record = json.loads((entry / RECORD).read_bytes())
        if record["wanted"] != json.loads(json.dumps(wanted)):
            return f"{entry} was made from something else"
        return others_may_write(entry) or _damage(entry, record, sample=True)
    except _UNREADABLE as error:
        if raised_by_signal_handler(error):
            raise
        if isinstance(error, FileNotFoundError):
            return f"{error.filename} is missing"
        if isinstance(error, OSError):  # The entry may be sound, so it stays.
            raise
        return f"{entry / RECORD} is damaged: {error!r}"


def _damage(entry: Path, record: Mapping[str, Any], *, sample: bool) -> str | None:
    """Says how an entry's files differ from what was written; None if they do not."""
    files = record["files"]
    found = (damage(entry / name, files[name], sample=sample) for name in (GRAPH, WEIGHTS))
    return next(filter(None, found), None)


def others_may_write(directory: Path) -> str | None:
    """Says who else may write to a folder, root excepted; None if nobody may."""
    if not hasattr(os, "geteuid"):  # Windows, where a profile's folders are private.
        return None
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{directory} belongs to user {status.st_uid}, this is user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{directory} has mode {stat.S_IMODE(status.st_mode):o}; run `chmod go-w` on it"
    return None


def remove(entry: Path) -> None:
    """Deletes an entry; a rename first makes sure that nobody opens half of it."""
    aside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=entry.parent))
    try:
        with tolerate(FileNotFoundError):  # Another process was faster.
            entry.rename(aside / entry.name)
    finally:
        discard(aside)


def discard(folder: Path) -> None:
    """Deletes a folder as far as permissions and other processes allow."""
    with tolerate(OSError):
        shutil.rmtree(folder)
