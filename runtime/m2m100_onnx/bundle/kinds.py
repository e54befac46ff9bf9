"""Opens a bundle of whatever kind it is, by its folder or its name on the hub.

Refuses to know what the kinds are for.
"""

from __future__ import annotations

import os
from typing import TypeVar

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.hub import locate
from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest
from m2m100_onnx.errors import BundleError, InvalidInputError

__all__ = ["open_again", "open_bundle", "opened"]

_Kind = TypeVar("_Kind", Bundle, LanguageModelBundle)


def open_bundle(
    bundle: str | os.PathLike[str], revision: str | None = None
) -> Bundle | LanguageModelBundle:
    """Opens a bundle; `locate` describes the arguments and the errors of the hub.

    Raises:
        BundleError: a file is missing, truncated or broken, or the format is newer.
    """
    root = locate(bundle, revision)
    if (root / MANIFEST_FILE).is_file() and Manifest.read(root).kind == "language model":
        return LanguageModelBundle.open(root)
    return Bundle.open(root)


def opened(
    kind: type[_Kind], bundle: str | os.PathLike[str] | _Kind, revision: str | None
) -> _Kind:
    """Returns a bundle that is open already, or opens one; see `open_bundle`.

    Raises:
        BundleError: the bundle cannot be opened, or is of another kind.
        InvalidInputError: a revision is given for a bundle that is open.
    """
    if not isinstance(bundle, (Bundle, LanguageModelBundle)):
        return kind.open(locate(bundle, revision))
    if revision is not None:
        raise InvalidInputError(
            f"revision: expected None for a bundle that is open, found {revision!r}"
        )
    return bundle


def open_again(kind: type[_Kind], folder: str, identity: str, face: str) -> _Kind:
    """Opens the bundle of an object that was copied or pickled, if it is still the same.

    Args:
        kind: the kind of the bundle.
        folder: where it lay.
        identity: its `identity_of`.
        face: what the object is called.

    Raises:
        BundleError: it is another one now, or gone.
    """
    bundle = kind.open(folder)
    if identity_of(bundle) != identity:
        raise BundleError(
            f"{bundle.directory} is not the bundle that the copied or pickled {face} had open: "
            "it was replaced since, or another one lies there on this machine; open it by its path"
        )
    return bundle
