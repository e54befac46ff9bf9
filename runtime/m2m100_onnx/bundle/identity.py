"""Which bundle it is, wherever its folder lies. Knows manifests and sizes; reads no weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from m2m100_onnx.bundle.folder import BundleFolder

__all__ = ["identity_of"]


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
