"""Changes the JSON files of a bundle, for the tests of bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.manifest import MANIFEST_FILE


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def accept(bundle: Path) -> None:
    """Corrects the sizes in the manifest, so that a changed file is wrong by its content alone."""

    def change(manifest: dict[str, Any]) -> None:
        for name, record in manifest["files"].items():
            record["size"] = (bundle / name).stat().st_size

    edit(bundle / MANIFEST_FILE, change)
