"""The output folder of a job: a shard's file is there whole, or it is not there.

Beside the shards' files lie the job's record `_job.json`, what each shard took in `_shards/`, and
at the end `_summary.json`; readers of folders such as Spark's and Arrow's pass over these names.

Knows names, bytes and file systems. A shard is finished when its file is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.jobs.bundles import file_system

__all__ = ["RECORD", "SUMMARY", "Store"]

RECORD = "_job.json"
SUMMARY = "_summary.json"
_FACTS = "_shards"
_PARTIAL = ".partial"
_NOTE = ".begun"


class Store:
    """An output folder, on a disk that all nodes share or in an object store."""

    def __init__(self, place: str) -> None:
        """Takes the folder, which need not exist."""
        self.place = place
        self._system, self._root = file_system(place)
        protocol = self._system.protocol
        protocols = (protocol,) if isinstance(protocol, str) else protocol
        self._local = "file" in protocols

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self) -> set[str]:
        """Returns the names of what is in the folder; none where there is no folder.

        Raises:
            InvalidInputError: the place is a file.
        """
        # Object stores cache what they list.
        self._system.invalidate_cache()
        if self._system.isfile(self._root):
            raise InvalidInputError(f"output: {self.place}: expected a folder, found a file")
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found}

    def write(self, name: str, data: bytes) -> None:
        """Writes a file that appears whole, in the place of one of its name.

        A disk gets it under a hidden name first; an object store shows what is complete alone.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        if not self._local:
            self._system.pipe_file(self._path(name), data)
            return
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def begin(self, name: str, node: str) -> list[str]:
        """Notes that a node begins a shard; returns the nodes that began it and did not end.

        Raises:
            OSError: the note cannot be written.
        """
        before: list[str] = []
        while self._system.exists(path := self._note(name, len(before))):
            before.append(self._system.cat_file(path).decode())
        self.write(f"{_FACTS}/{name}.{len(before)}{_NOTE}", node.encode())
        return before

    def end(self, name: str, before: int) -> None:
        """Removes the notes of a shard, of which there were `before` when it was begun."""
        for number in range(before + 1):
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._note(name, number))

    def _note(self, name: str, number: int) -> str:
        return self._path(f"{_FACTS}/{name}.{number}{_NOTE}")

    def finish(self, name: str, data: bytes, facts: dict[str, Any]) -> None:
        """Writes the file of a shard, which is finished then, and what it took.

        Raises:
            OSError: it cannot be written, and the shard is not finished.
        """
        self.write(f"{_FACTS}/{name}.json", json.dumps(facts).encode())
        self.write(name, data)

    def facts(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Returns what finished shards took."""
        paths = [self._path(f"{_FACTS}/{name}.json") for name in names]
        found = self._system.cat(paths) if paths else {}
        if isinstance(found, bytes):  # One path gives one answer.
            found = {paths[0]: found}
        return [json.loads(data) for data in found.values()]

    def read_record(self) -> dict[str, Any]:
        """Returns the job's record.

        Raises:
            InvalidInputError: it is damaged.
        """
        try:
            found = json.loads(self._system.cat_file(self._path(RECORD)))
        except ValueError as error:
            raise InvalidInputError(
                f"{self.place}/{RECORD}: expected JSON, found {error}"
            ) from None
        if not isinstance(found, dict) or not {"job", "shards", "inputs"} <= set(found):
            raise InvalidInputError(f"{self.place}/{RECORD}: expected the record of a job")
        return found

    def clean(self) -> None:
        """Removes what killed workers have left: notes, and files under hidden names."""
        for path in self._system.glob(self._path(f"{_FACTS}/*{_NOTE}")):
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(path)
        if self._local:
            for folder in (Path(self._root), Path(self._root) / _FACTS):
                for path in folder.glob(f".*{_PARTIAL}"):
                    with contextlib.suppress(OSError):
                        path.unlink()
