"""The place of a bundle on disk: a hidden folder to work in, and how it becomes the bundle.

A rename puts the bundle in place, whole or not at all. A folder that no rename can replace (a mount
point, the current folder) gets its files one by one. Refuses to know what a bundle holds, except
which files make it one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2m100_onnx.bundle.graphs import GRAPH_FILES
from m2m100_onnx.bundle.language_graphs import MODEL_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.errors import ExportError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = ["Place"]

# What a new file system has, and nobody put there.
_NOT_MINE = ("lost+found",)


@dataclass(frozen=True)
class Place:
    """Where a bundle goes.

    Attributes:
        target: the bundle's folder as the caller named it.
        folder: the same with a name of its own, which `.` does not have.
        fixed: whether the folder is there to stay, so that files are moved into it.
    """

    target: Path
    folder: Path
    fixed: bool

    @classmethod
    def of(cls, target: Path, *, overwrite: bool) -> Place:
        """Checks that a bundle can be put at `target`, before the work.

        What an export that was killed left there is removed, and an old bundle that it had moved
        away comes back.

        Raises:
            ExportError: something is there that is not replaced, or the folder cannot be written.
        """
        folder = target if target.name not in ("", "..") else target.resolve()
        _tidy(folder)
        if os.path.lexists(target) and not overwrite:
            raise ExportError(
                f"{target} exists; choose another folder, or overwrite it "
                "(overwrite=True, --overwrite)"
            )
        empty = target.is_dir() and not _entries(target)
        if os.path.lexists(target) and not empty and not _is_bundle(target):
            raise ExportError(
                f"{target} is no bundle, so overwrite does not replace it; remove it yourself"
            )
        fixed = target.exists() and (empty or _is_fixed(target))
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not os.access(folder if fixed else folder.parent if folder.exists() else above, os.W_OK):
            raise ExportError(f"{target}: could not write the bundle: no permission to write here")
        return cls(target, folder, fixed)

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """Makes an empty folder to work in, of the same file system as the target.

        Removes the folder, and the parents that it made, unless the bundle lies there afterwards.
        """
        missing = [folder for folder in self.folder.parents if not folder.exists()]
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with _hidden(self.folder, "work", inside=self.fixed) as work:
                try:
                    yield work
                finally:
                    shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            if raised_by_signal_handler(error):
                raise
            raise ExportError(f"{self.target}: could not write the bundle: {error}") from error
        finally:
            for folder in missing:  # innermost first; a folder that holds the bundle is not empty
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def put(self, work: Path) -> None:
        """Makes the finished work folder the bundle; removes an old bundle only after that.

        Raises:
            ExportError: the system allows neither a rename nor single files. The bundle is kept,
                and the message says where.
        """
        work.chmod(0o755)
        try:
            if self.fixed:
                self._move_in(work)
            elif not self.folder.exists():
                work.rename(self.folder)
            else:
                self._replace(work)
        except OSError as error:
            if raised_by_signal_handler(error):
                raise
            kept = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=work.parent))
            work.rename(kept)
            raise ExportError(
                f"{self.target}: could not put the bundle in place: {error}; it is complete in "
                f"{kept}, so move it yourself"
            ) from error

    def _replace(self, work: Path) -> None:
        with _hidden(self.folder, "old", inside=False) as old:
            try:
                try:
                    self.folder.rename(old / self.folder.name)
                except OSError as error:
                    if raised_by_signal_handler(error):
                        raise
                    # A folder of a container's image is one that no rename moves.
                    self._move_in(work)
                else:
                    work.rename(self.folder)
            except BaseException:
                if not self.folder.exists():
                    (old / self.folder.name).rename(self.folder)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)

    def _move_in(self, work: Path) -> None:
        """Moves the files of an old bundle out and those of the new one in, or none of them."""
        # The manifest goes first and the graphs come last: a folder without either is no bundle.
        before = sorted(_entries(self.folder), key=MANIFEST_FILE.__ne__)
        names = sorted(
            (path.name for path in work.iterdir()), key=(*GRAPH_FILES, MODEL_FILE).__contains__
        )
        with _hidden(self.folder, "old", inside=True) as old:
            try:
                for name in before:
                    (self.folder / name).rename(old / name)
                for name in names:
                    shutil.move(work / name, self.folder / name)
            except BaseException:
                for name in names:
                    if name in before and not (old / name).exists():
                        continue  # the old file has not been moved yet
                    if (work / name).exists():
                        (self.folder / name).unlink(missing_ok=True)  # half copied
                    else:
                        shutil.move(self.folder / name, work / name)
                _bring_back(old, self.folder)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)


def _entries(folder: Path) -> list[str]:
    """Returns the names of a folder's files that an export may replace."""
    hidden = re.compile(_pattern(folder))
    names = (path.name for path in folder.iterdir())
    return [name for name in names if name not in _NOT_MINE and not hidden.fullmatch(name)]


def _is_bundle(folder: Path) -> bool:
    # manifest.json alone proves nothing: web pages and browser extensions have one too.
    has_graphs = any(
        all((folder / name).exists() for name in kind) for kind in (GRAPH_FILES, (MODEL_FILE,))
    )
    return has_graphs and (folder / MANIFEST_FILE).exists()


def _is_fixed(folder: Path) -> bool:
    """Whether a folder cannot be renamed, or is one that a shell would be left without."""
    here = folder.resolve()
    if here == Path.cwd() or os.path.ismount(here) or not os.access(here.parent, os.W_OK):
        return True
    # Python sees no mount point where the mounted folder is of the same file system.
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            escaped = line.split()[4].decode("ascii", "surrogateescape")
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
            if place == os.fspath(here):
                return True
    return False


# --- Hidden folders ------------------------------------------------------------------------------
#
# An export locks its hidden folders, and the system releases the locks of a process that ends, even
# by SIGKILL. So a folder that nobody locks is stale. Its name has the running system's identity: a
# file system may be shared with another machine, whose locks are not seen here.


def _system() -> str:
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        return ""
    return re.sub(r"[^0-9a-f]", "", identity)[:12]


def _pattern(folder: Path, kind: str = "(work|old)") -> str:
    """Returns a regular expression of the names of a target's hidden folders on this system."""
    return rf"\.{re.escape(folder.name)}\.{_system()}-{kind}\.[a-z0-9_]{{8}}"


@contextlib.contextmanager
def _hidden(folder: Path, kind: str, *, inside: bool) -> Iterator[Path]:
    """Makes a hidden folder for a target, inside it or beside it, and locks it meanwhile."""
    prefix = f".{folder.name}.{_system()}-{kind}."
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder if inside else folder.parent))
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a network's file system may have no such lock
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Another export may have taken the folder for stale before it was locked.
            if made.exists():
                yield made
                return
        finally:
            os.close(lock)


def _tidy(folder: Path) -> None:
    """Removes the hidden folders of exports to `folder` that have ended without doing so.

    An old bundle that such an export moved away comes back if there is no new one.
    """
    for kind in ("old", "work"):
        name = re.compile(_pattern(folder, kind))
        for place in (folder.parent, folder):
            with contextlib.suppress(OSError):
                for path in [path for path in place.iterdir() if name.fullmatch(path.name)]:
                    with _locked(path) as stale:
                        if stale and kind == "old" and not _is_bundle(folder):
                            _bring_back(path, place)
                        if stale:
                            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Locks a hidden folder, and says whether that was possible: nobody else has the lock."""
    if not _system():
        yield False
        return
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


def _bring_back(old: Path, folder: Path) -> None:
    """Moves what `old` holds back to the folder that it came from."""
    for path in old.iterdir():
        path.rename(folder / path.name)
