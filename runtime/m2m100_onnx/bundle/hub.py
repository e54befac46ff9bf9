"""The place of a bundle or a checkpoint: a local folder, a download from the hub, or its cache.

Downloads are those of huggingface_hub, with its cache, its tokens and its offline mode. Refuses to
know what the files mean, except which of them a bundle's manifest names.
"""

from __future__ import annotations

import glob
import importlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest
from m2m100_onnx.errors import BundleError, DependencyError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = ["find", "is_hub_id", "locate", "remember"]

_LOGGER = logging.getLogger("m2m100_onnx")

Download = Callable[[str, str | None], tuple[Path, str | None]]
"""Downloads what a hub id names at a revision; returns the folder and the commit."""
Cached = Callable[[str, str | None], Path | None]
"""Returns the folder of a download in the cache, None where it is not whole."""


def locate(source: str | os.PathLike[str], revision: str | None = None) -> str | os.PathLike[str]:
    """Returns the folder of a bundle; one on the hub is downloaded, unless it is in the cache.

    Args:
        source: a folder, or an id on the hub such as `someone/m2m100_418M-int8`. A folder wins.
        revision: branch, tag or commit on the hub.

    Raises:
        BundleError: the hub has no such bundle, or is out of reach and the cache has none; or there
            is a revision of a folder.
        DependencyError: huggingface_hub is not installed.
    """
    if revision is None and not is_hub_id(source):
        return source
    return find(os.fspath(source), revision, "bundle", _download, _cached)[0]


def is_hub_id(source: object) -> bool:
    """Whether a name can be an id on the hub: `owner/name`, and no path that is there."""
    if not isinstance(source, str) or source.startswith((".", "/", "~")):
        return False
    return source.count("/") == 1 and not Path(source).exists()


def find(
    source: str, revision: str | None, what: str, download: Download, cached: Cached
) -> tuple[Path, str | None]:
    """Returns a folder and its hub commit, None for a local folder.

    Where the hub is out of reach, or HF_HUB_OFFLINE is set, the copy in the hub's cache serves.

    Args:
        source: a local folder, or an id on the hub.
        revision: branch, tag or commit on the hub.
        what: what is to be found, in words.
        download: downloads it.
        cached: looks for it in the cache.

    Raises:
        BundleError: there is neither a folder nor such a thing on the hub.
        DependencyError: huggingface_hub is not installed.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise BundleError(
                f"{source}: a folder has no revisions, found revision {revision!r}; leave it out, "
                "or give a hub id"
            )
        return Path(source), None
    if not is_hub_id(source):
        raise BundleError(f"{source}: expected the folder of a {what} or a hub id, found neither")
    try:
        importlib.import_module("huggingface_hub")
        found = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise DependencyError(
            f"{source}: found no such local folder, and a download from the hub needs "
            f"huggingface_hub ({error}); run `pip install 'm2m100-onnx[hub]'`"
        ) from error
    # The hub's errors have no common base class and differ by HTTP library; this module has them
    # all, that library's own included.
    named = [kind for kind in vars(found).values() if isinstance(kind, type)]
    theirs = [kind for kind in named if issubclass(kind, Exception)]
    errors: tuple[type[Exception], ...] = (OSError, ValueError, *theirs)
    try:
        return download(source, revision)
    except BundleError:
        raise
    except errors as error:
        if raised_by_signal_handler(error):
            raise
        if _out_of_reach(error) and (folder := cached(source, revision)):
            if not isinstance(error, found.OfflineModeIsEnabled):
                _LOGGER.warning(
                    "the hub is out of reach (%s); %s is the cached copy", error, folder
                )
            return folder, folder.name
        raise BundleError(
            f"{source}: found no such local folder, and could not download it from the hub"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error


def _out_of_reach(error: Exception) -> bool:
    """Whether the hub gave no answer, or none about what was asked for."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _download(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Downloads a bundle: the manifest, and the files that it names."""
    hub: Any = importlib.import_module("huggingface_hub")
    info = hub.HfApi().model_info(source, revision=revision)
    names = [entry.rfilename for entry in info.siblings or ()]
    if MANIFEST_FILE not in names:
        checkpoint = any(name.endswith((".safetensors", ".bin")) for name in names)
        hint = f"; this is a checkpoint: run `m2m100 export {source} FOLDER`" if checkpoint else ""
        raise BundleError(
            f"{source}: expected a bundle with {MANIFEST_FILE} on the hub, "
            f"found {', '.join(names[:6]) or 'no files'}{hint}"
        )
    # The branch may move between the calls; the commit does not.
    folder = hub.snapshot_download(source, revision=info.sha, allow_patterns=[MANIFEST_FILE])
    listed = Manifest.read(Path(folder)).files
    folder = hub.snapshot_download(source, revision=info.sha, allow_patterns=_patterns(listed))
    remember(source, MANIFEST_FILE, revision)
    return Path(folder), info.sha


def remember(source: str, name: str, revision: str | None) -> None:
    """Makes the hub's cache know the commit of a branch or tag, for when the hub is away.

    Args:
        source: an id on the hub.
        name: a file of the repository, which the cache has.
        revision: branch, tag or commit.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    hub.hf_hub_download(source, name, revision=revision)


def _patterns(names: Iterable[str]) -> list[str]:
    """Returns patterns that match a bundle's files and no others."""
    return [glob.escape(name) for name in (MANIFEST_FILE, *names)]


def _cached(source: str, revision: str | None) -> Path | None:
    """Returns the snapshot of a bundle in the hub's cache, None where a file is missing.

    The folder's name is the commit.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        found = hub.try_to_load_from_cache(source, MANIFEST_FILE, revision=revision)
    except ValueError:  # the name is no id of the hub
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    whole = all((folder / name).is_file() for name in Manifest.read(folder).files)
    return folder if whole else None
