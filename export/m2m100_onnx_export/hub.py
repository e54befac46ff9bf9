"""The place of a checkpoint: a local folder, a download from the hub, or the hub's cache.

Knows which files of a checkpoint count. Refuses to know what is in them.
"""

from __future__ import annotations

from pathlib import Path

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.bundle.hub import find, remember
from m2m100_onnx_export.weight_files import preferred, refuse_quantized

__all__ = ["locate"]

# The model card names the licence.
_SMALL = ["*.json", "*.txt", "*.model", "README.md"]


def locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder of a checkpoint and its hub commit, None for a local folder.

    A hub id is downloaded. Where the hub is out of reach, or HF_HUB_OFFLINE is set, the copy in the
    hub's cache serves.

    Raises:
        BundleError: there is neither a folder nor a checkpoint of the hub.
    """
    return find(source, revision, "checkpoint", _download, _cached)


def _download(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Downloads a checkpoint, the small files first."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(source, revision=revision)
    folder = snapshot_download(source, revision=info.sha, allow_patterns=_SMALL)
    if (Path(folder) / CONFIG_FILE).is_file():
        refuse_quantized(Path(folder))
    # The hub also has copies for TensorFlow, Flax and Rust, of gigabytes each.
    name = preferred([entry.rfilename for entry in info.siblings or ()])
    if name is not None:
        stem, suffix = name.removesuffix(".index.json").split(".")
        weights = f"{stem}*.{suffix}" if name.endswith(".index.json") else name
        folder = snapshot_download(source, revision=info.sha, allow_patterns=[weights])
    if (Path(folder) / CONFIG_FILE).is_file():
        remember(source, CONFIG_FILE, revision)
    return Path(folder), info.sha


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
