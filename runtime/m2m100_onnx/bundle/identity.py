"""Which bundle it is, wherever its folder lies. Knows manifests and sizes; reads no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from m2m100_onnx.bundle.folder import BundleFolder
from m2m100_onnx.errors import BundleError

__all__ = ["identity_of", "open_same"]

_B = TypeVar("_B", bound=BundleFolder)


def identity_of(bundle: BundleFolder) -> str:
    """Returns a digest that is equal for copies of a bundle, and differs for other bundles.

    It is made from the manifest, which has each file's hash. A folder without a manifest is told
    apart by the names and sizes of its graphs and weights, since hashing would read gigabytes.
    """
    if bundle.manifest is not None:
        facts: object = asdict(bundle.manifest)
    else:
        facts = {name: state[0] for name, state in bundle._state.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_same(open_bundle: Callable[[str], _B], folder: str, identity: str, owner: str) -> _B:
    """Opens the bundle of something that was copied or pickled, if it is still the same.

    Args:
        open_bundle: opens the folder.
        folder: the bundle's folder.
        identity: what `identity_of` returned for the bundle.
        owner: what had the bundle open, for the message.

    Raises:
        BundleError: another bundle lies there, or none.
    """
    bundle = open_bundle(folder)
    if identity_of(bundle) != identity:
        raise BundleError(
            f"{bundle.directory} is not the bundle that the copied or pickled {owner} had open: "
            "it was replaced since, or another one lies there on this machine; open it by its path"
        )
    return bundle
