"""Names on the hub: a name becomes a folder of the hub's cache that has the files needed.

Knows huggingface_hub, and which files of a repository are a bundle. The exporter finds checkpoints
with it. Refuses to know what is in the files, the manifest's list of them excepted.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from m2m100_onnx.bundle.bundle import TOKENIZER_FILES
from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.bundle.generation import GENERATION_CONFIG_FILE
from m2m100_onnx.bundle.graphs import GRAPH_FILES
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest
from m2m100_onnx.errors import BundleError, DependencyError, InvalidInputError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = ["FilesOfRepository", "find", "first_names", "locate"]

_LOGGER = logging.getLogger("m2m100_onnx")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What the machine lacks when a download cannot be stored. The hub has no part in it.
_LOCAL_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ENAMETOOLONG),
}
_LOGIN = "set HF_TOKEN or run `hf auth login`"
# By the hub's type of error; the first that fits counts.
_REASONS = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and the hub's cache has no whole copy",
    "GatedRepoError": f"access is restricted; ask for it on the repository's page, then {_LOGIN}",
    "RevisionNotFoundError": "the repository has no such revision",
    "RepositoryNotFoundError": f"there is no such repository, or it is private; if so, {_LOGIN}",
}


class FilesOfRepository(Protocol):
    """Which files of a repository make what is looked for."""

    @property
    def noun(self) -> str:
        """What is looked for, for error messages."""
        ...

    def first(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Returns the small files, which are downloaded first.

        Args:
            source: the repository, for error messages.
            names: all of its files.

        Raises:
            BundleError: the repository does not have what is looked for.
        """
        ...

    def rest(self, source: str, folder: Path, names: Sequence[str]) -> Sequence[str]:
        """Returns the other files.

        Args:
            source: the repository, for error messages.
            folder: has the first files.
            names: all files of the repository.

        Raises:
            BundleError: the first files say that the others are of no use, or do not exist.
        """
        ...

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder proves by itself that no file is missing."""
        ...

    def is_usable(self, folder: Path) -> bool:
        """Whether a folder serves while nobody can say what else the repository has."""
        ...


class _BundleFiles:
    noun = "an exported bundle"

    def first(self, source: str, names: Sequence[str]) -> list[str]:
        # Optimum's exports have no manifest.
        if MANIFEST_FILE in names or all(name in names for name in GRAPH_FILES):
            return [name for name in (MANIFEST_FILE, CONFIG_FILE) if name in names]
        inside = sorted(name for name in names if name.endswith(f"/{MANIFEST_FILE}"))
        if inside:
            folders = ", ".join(name.removesuffix(MANIFEST_FILE) for name in inside)
            raise BundleError(
                f"{source}: expected one bundle at the top of the repository, found bundles in "
                f"{folders}; download the folder of one and give its path"
            )
        hint = ""
        if any(name.endswith(_WEIGHTS) for name in names):
            hint = f"; this is a checkpoint: run `m2m100 export {source} FOLDER`, then use FOLDER"
        raise BundleError(
            f"{source}: expected {MANIFEST_FILE} or graphs in the repository, found "
            f"{first_names(names)}{hint}"
        )

    def rest(self, source: str, folder: Path, names: Sequence[str]) -> list[str]:
        if not (folder / MANIFEST_FILE).is_file():
            others = (GENERATION_CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)
            # A graph's weights lie in a file of the graph's name and a suffix.
            return [name for name in names if name in others or name.startswith(GRAPH_FILES)]
        listed = list(Manifest.read(folder).files)
        if missing := [name for name in listed if name not in names]:
            raise BundleError(
                f"{source}: expected the files that {MANIFEST_FILE} lists, found none of "
                f"{', '.join(missing)} in the repository"
            )
        return listed

    def is_whole(self, folder: Path) -> bool:
        try:
            files = Manifest.read(folder).files
        except BundleError:
            return False
        return all((folder / name).is_file() for name in files)

    def is_usable(self, folder: Path) -> bool:
        if (folder / MANIFEST_FILE).is_file():
            return self.is_whole(folder)
        return all((folder / name).is_file() for name in GRAPH_FILES)


def locate(bundle: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Returns the folder of a bundle.

    Args:
        bundle: a folder, or a name on the hub such as `org/name`. A folder of that name wins, and a
            `Path` is always a folder.
        revision: a branch, tag or commit of the hub. A commit that is in the hub's cache is opened
            without a request.

    Raises:
        BundleError: the hub has no such bundle, or is out of reach and its cache has no copy.
        DependencyError: huggingface_hub is not installed.
        InvalidInputError: an argument has the wrong type.
        OSError: the hub's cache cannot be written, for instance because the disk is full.
    """
    return find(bundle, revision, _BundleFiles())[0]


def find(
    source: str | os.PathLike[str], revision: str | None, files: FilesOfRepository
) -> tuple[Path, str | None]:
    """Returns a folder and its commit; None for a local folder, which need not exist.

    Only the files that are needed are downloaded. Where the hub is out of reach, or HF_HUB_OFFLINE
    is set, the copy in the hub's cache serves. `locate` describes arguments and errors.
    """
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise InvalidInputError(f"bundle: expected a folder's path, found {kind}")
    if revision is not None and not (isinstance(revision, str) and revision):
        raise InvalidInputError(f"revision: expected a branch, tag or commit, found {revision!r}")
    if _is_local(source):
        if revision is not None and Path(source).is_dir():
            raise BundleError(
                f"{source}: a folder has no revisions, found revision {revision!r}; leave it out, "
                "or give a hub id"
            )
        return Path(source), None
    name = os.fspath(source)
    hub = _import_hub(name, files.noun)
    pinned = _cached(hub, name, revision) if _COMMIT.fullmatch(revision or "") else None
    if pinned is not None and files.is_whole(pinned):  # A commit never changes.
        return pinned, pinned.name
    return _ask_hub(hub, name, revision, files)


def _is_local(source: str | os.PathLike[str]) -> bool:
    if not isinstance(source, str) or Path(source).exists():
        return True
    return source.startswith((".", "/", "~")) or source.count("/") != 1


def _import_hub(source: str, noun: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise DependencyError(
            f"{source}: found no such local folder; to fetch {noun} of that name from the hub "
            f"({error}), run `pip install 'm2m100-onnx[hub]'`"
        ) from error
    return huggingface_hub


def _ask_hub(
    hub: Any, source: str, revision: str | None, files: FilesOfRepository
) -> tuple[Path, str]:
    # The hub's errors have no common base class and differ by HTTP library; this module has them
    # all, that library's own included.
    named = [kind for kind in vars(hub.errors).values() if isinstance(kind, type)]
    theirs = [kind for kind in named if issubclass(kind, Exception)]
    errors: tuple[type[Exception], ...] = (OSError, ValueError, *theirs)
    try:
        folder = _download(hub, source, revision, files)
    except BundleError:
        raise
    except errors as error:
        if raised_by_signal_handler(error) or getattr(error, "errno", None) in _LOCAL_ERRORS:
            raise
        copy = _cached(hub, source, revision) if _out_of_reach(error) else None
        if copy is None or not files.is_usable(copy):
            raise BundleError(
                f"{source}: found no such local folder, and could not download it from the hub"
                f"{f' at revision {revision!r}' if revision else ''}: {_reason(error)}"
            ) from error
        if not isinstance(error, hub.errors.OfflineModeIsEnabled):
            reason = _reason(error)
            _LOGGER.warning("the hub is out of reach (%s); %s is the cached copy", reason, copy)
        folder = copy
    # The cache names the folder of a snapshot by its commit.
    return folder, folder.name


def _download(hub: Any, source: str, revision: str | None, files: FilesOfRepository) -> Path:
    """Downloads what the cache does not have yet, a file after the other.

    A file that is interrupted leaves no file of its name.
    """
    seconds = hub.constants.HF_HUB_ETAG_TIMEOUT
    info = hub.HfApi().model_info(source, revision=revision, timeout=seconds)
    names = _names(info)
    first = files.first(source, names)
    if CONFIG_FILE not in first:
        raise BundleError(
            f"{source}: expected {CONFIG_FILE} in the repository, found {first_names(names)}"
        )
    # By the revision's name: so the cache notes its commit, which it is asked for without the hub.
    folder = Path(hub.hf_hub_download(source, CONFIG_FILE, revision=revision)).parent
    commit = folder.name
    if commit != info.sha:  # The branch has moved meanwhile.
        names = _names(hub.HfApi().model_info(source, revision=commit, timeout=seconds))
        first = files.first(source, names)
    for name in first:
        hub.hf_hub_download(source, name, revision=commit)
    for name in files.rest(source, folder, names):
        hub.hf_hub_download(source, name, revision=commit)
    return folder


def _names(info: Any) -> list[str]:
    return [entry.rfilename for entry in info.siblings or ()]


def _cached(hub: Any, source: str, revision: str | None) -> Path | None:
    """Returns the hub's cached snapshot of a repository, whole or not; None without one."""
    try:
        found = hub.try_to_load_from_cache(source, CONFIG_FILE, revision=revision)
    except ValueError as error:  # The name is no id of the hub.
        if raised_by_signal_handler(error):
            raise
        return None
    return Path(found).parent if isinstance(found, str) else None


def _out_of_reach(error: Exception) -> bool:
    """Whether the hub gave no answer, or none about the repository."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _reason(error: Exception) -> str:
    """Returns what an error of the hub means, in a line; its own words where they are all there is.

    The request for a file wraps the error of the connection.
    """
    kinds = [kind.__name__ for kind in type(error).__mro__]
    known = next((text for kind, text in _REASONS.items() if kind in kinds), None)
    return known or " ".join(str(error).split()) or type(error).__name__


def first_names(names: Sequence[str]) -> str:
    """Returns the first names of a folder or a repository, for an error message."""
    if not names:
        return "no files"
    return ", ".join(sorted(names)[:6]) + (", ..." if len(names) > 6 else "")
