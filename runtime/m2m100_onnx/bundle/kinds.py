"""Opens a bundle of whatever kind it is. Refuses to know what the kinds are for."""

from __future__ import annotations

import os
from pathlib import Path

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest

__all__ = ["open_bundle"]


def open_bundle(directory: str | os.PathLike[str]) -> Bundle | LanguageModelBundle:
    """Opens a bundle.

    Raises:
        BundleError: a file is missing, truncated or broken, or the format is newer.
        InvalidInputError: `directory` is no path.
    """
    root = Path(directory)
    if (root / MANIFEST_FILE).is_file() and Manifest.read(root).kind == "language model":
        return LanguageModelBundle.open(directory)
    return Bundle.open(directory)
