"""The place of a checkpoint: a local folder, a download from the hub, or the hub's cache.

Refuses to know what is in the files.
"""

from __future__ import annotations

import logging
from pathlib import Path

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.errors import BundleError
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx_export.weight_files import preferred, refuse_quantized

__all__ = ["locate"]

_LOGGER = logging.getLogger("m2m100_onnx")


def locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder of a checkpoint and its hub commit, None for a local folder.

    A hub id is downloaded. Where the hub is out of reach, or HF_HUB_OFFLINE is set, the copy in the
    hub's cache serves.

    Raises:
        BundleError: there is neither a folder nor a checkpoint of the hub.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise BundleError(
                f"{source}: a folder has no revisions, found revision {revision!r}; leave it out, "
                "or give a hub id"
            )
        return Path(source), None
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local or Path(source).exists():
        raise BundleError(
            f"{source}: expected the folder of a checkpoint or a hub id, found neither"
        )
    import huggingface_hub

    # The hub's errors have no common base class and differ by HTTP library; this module has them
    # all, that library's own included.
    named = [kind for kind in vars(huggingface_hub.errors).values() if isinstance(kind, type)]
    theirs = [kind for kind in named if issubclass(kind, Exception)]
    errors: tuple[type[Exception], ...] = (OSError, ValueError, *theirs)
    try:
        return _download(source, revision)
    except BundleError:
        raise
    except errors as error:
        if raised_by_signal_handler(error):
            raise
        if _out_of_reach(error) and (folder := _cached(source, revision)):
            if not isinstance(error, huggingface_hub.errors.OfflineModeIsEnabled):
                _LOGGER.warning(
                    "the hub is out of reach (%s); %s is the cached copy", error, folder
                )
            return folder, folder.name
        raise BundleError(
            f"{source}: found no such local folder, and could not download it from the hub"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error


def _download(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Downloads a checkpoint, the small files first."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(source, revision=revision)
    folder = snapshot_download(source, revision=info.sha, allow_patterns=["*.json", "*.model"])
    if (Path(folder) / CONFIG_FILE).is_file():
        refuse_quantized(Path(folder))
    # The hub also has copies for TensorFlow, Flax and Rust, of gigabytes each.
    name = preferred([entry.rfilename for entry in info.siblings or ()])
    if name is not None:
        stem, suffix = name.removesuffix(".index.json").split(".")
        weights = f"{stem}*.{suffix}" if name.endswith(".index.json") else name
        folder = snapshot_download(source, revision=info.sha, allow_patterns=[weights])
    return Path(folder), info.sha


def _out_of_reach(error: Exception) -> bool:
    """Whether the hub gave no answer, or none about the checkpoint."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status == 429 or status >= 500


def _cached(source: str, revision: str | None) -> Path | None:
    """Returns the snapshot of a checkpoint in the hub's cache, None where it has no weights.

    The folder's name is the commit.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(source, CONFIG_FILE, revision=revision)
    except ValueError:  # the name is no id of the hub
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if preferred([path.name for path in folder.iterdir()]) else None
