"""Opens a bundle of whatever kind it is. Refuses to know what the kinds are for."""

from __future__ import annotations

import os
from pathlib import Path

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.hub import locate
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest

__all__ = ["open_bundle"]


def open_bundle(
    source: str | os.PathLike[str], revision: str | None = None
) -> Bundle | LanguageModelBundle:
    """Opens a bundle.

    Args:
        source: its folder, or its id on the hub.
        revision: branch, tag or commit on the hub.

    Raises:
        BundleError: a file is missing, truncated or broken, or the format is newer.
        InvalidInputError: `source` is no path.
    """
    directory = locate(source, revision)
    root = Path(directory)
    if (root / MANIFEST_FILE).is_file() and Manifest.read(root).kind == "language model":
        return LanguageModelBundle.open(directory)
    return Bundle.open(directory)
