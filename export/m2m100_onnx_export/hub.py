"""The place of a checkpoint: a local folder, a download from the hub, or the hub's cache.

Knows which files of a repository are a checkpoint. The runtime's `bundle/hub.py` downloads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2m100_onnx.bundle.config import CONFIG_FILE, read_json
from m2m100_onnx.bundle.hub import find, first_names
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.weight_files import preferred, refuse_quantized, weight_files

__all__ = ["CARD_FILE", "locate"]

CARD_FILE = "README.md"


class _CheckpointFiles:
    noun = "a checkpoint"

    def first(self, source: str, names: Sequence[str]) -> list[str]:
        if MANIFEST_FILE in names:
            raise BundleError(
                f"{source}: expected a checkpoint, found a bundle ({MANIFEST_FILE}), which is "
                "exported already; translate with it"
            )
        if CONFIG_FILE not in names:
            raise BundleError(
                f"{source}: expected a checkpoint with {CONFIG_FILE}, found {first_names(names)}"
            )
        return [
            name
            for name in names
            if "/" not in name
            and (name.endswith((".json", ".model")) or name in ("merges.txt", CARD_FILE))
        ]

    def rest(self, source: str, folder: Path, names: Sequence[str]) -> list[str]:
        del source
        refuse_quantized(folder)
        # The hub also has copies for TensorFlow, Flax and Rust, of gigabytes each.
        name = preferred(names)
        if name is None or not name.endswith(".index.json"):
            return [name] if name else []
        shards = read_json(folder / name).get("weight_map")
        # What is wrong with the index, or lacks, is found when the folder is read.
        return [shard for shard in names if isinstance(shards, dict) and shard in shards.values()]

    def is_whole(self, folder: Path) -> bool:
        # No file lists the others.
        del folder
        return False

    def is_usable(self, folder: Path) -> bool:
        try:
            return bool(weight_files(folder))
        except BundleError:
            return False


def locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Returns the folder of a checkpoint and its hub commit, None for a local folder.

    Raises:
        BundleError: there is neither a folder nor a checkpoint of the hub.
    """
    folder, commit = find(source, revision, _CheckpointFiles())
    if not folder.is_dir():
        raise BundleError(
            f"{source}: expected the folder of a checkpoint or a hub id, found neither"
        )
    return folder, commit
