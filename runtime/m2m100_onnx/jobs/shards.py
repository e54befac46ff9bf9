"""Shards: pieces of input files that are read, translated, written and retried as a whole.

Knows paths and sizes. Leaves formats to `lines.py` and `tables.py`, and text to `columns.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.jobs.bundles import file_system, is_uri
from m2m100_onnx.jobs.columns import Columns, Results
from m2m100_onnx.jobs.lines import CsvRows, JsonRows
from m2m100_onnx.jobs.tables import ParquetRows

__all__ = ["FORMATS", "MOST_BYTES", "Rows", "Shard", "input_files", "read_shard", "shards_of"]

MOST_BYTES = 64 << 20
"""Bytes of input that a shard has at most, unless one row has more: a shard is held in memory."""
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class Rows(Protocol):
    """The rows of a shard, in memory.

    Attributes:
        columns: the values of each column that is read.
        problems: why rows cannot be read, by their places in the shard.
    """

    columns: list[list[Any]]
    problems: dict[int, str]

    def encode(self, results: Results) -> bytes:
        """Returns the shard's output file: all that was read, with the columns that are added."""
        ...


FORMATS: dict[str, Any] = {"parquet": ParquetRows, "jsonl": JsonRows, "csv": CsvRows}
"""How each format is cut into shards (`cut`), read (`read`) and written (`encode`)."""


@dataclass(frozen=True)
class Shard:
    """A piece of an input file.

    Attributes:
        name: the output file.
        path: the input file, a path or a URI.
        start: where it begins in the file: a row of Parquet, a byte of other formats.
        stop: where it ends.
        rows: its rows.
        first: how many rows of the file come before it.
    """

    name: str
    path: str
    start: int
    stop: int
    rows: int
    first: int


def input_files(places: Sequence[str], kind: str) -> list[tuple[str, int]]:
    """Returns the input files with their bytes, in the order in which they were given.

    Args:
        places: files, and folders of which all files of the format are taken, in the order of
            their names, but none whose name, or a folder's on the way, begins with `.` or `_`.
        kind: a name in `FORMATS`.

    Raises:
        InvalidInputError: a place does not exist, has no files of the format, or is compressed.
    """
    found: list[tuple[str, int]] = []
    for place in places:
        system, path = file_system(place)
        try:
            facts = system.info(path)
        except FileNotFoundError:
            raise InvalidInputError(
                f"input: {place}: expected a file or a folder, found none"
            ) from None
        files = [facts] if facts["type"] == "file" else list(_inside(system, path, kind))
        if not files:
            raise InvalidInputError(f"input: {place}: expected files *.{kind}, found none")
        for file in files:
            name = system.unstrip_protocol(file["name"]) if is_uri(place) else file["name"]
            if name.endswith(_COMPRESSED):
                raise InvalidInputError(
                    f"input: {name}: expected an uncompressed file, which can be cut; found "
                    "a compressed one; unpack it, or make it Parquet"
                )
            found.append((name, file["size"]))
    names = [name for name, _ in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"input: expected each file once, found {doubled[0]} twice")
    return found


def _inside(system: Any, folder: str, kind: str) -> Iterator[dict[str, Any]]:
    for path, facts in sorted(system.find(folder, detail=True).items()):
        below = path[len(folder) :].strip("/").split("/")
        hidden = any(part.startswith((".", "_")) for part in below)
        if not hidden and path.endswith((f".{kind}", *(f".{kind}{end}" for end in _COMPRESSED))):
            yield facts


def shards_of(path: str, number: int, kind: str, columns: Columns, rows: int) -> list[Shard]:
    """Cuts an input file into shards; reads all of it, or the footer of Parquet.

    Args:
        path: the file.
        number: its place among the input files.
        kind: its format.
        columns: columns that it must have, and must not have.
        rows: most rows of a shard.

    Raises:
        InvalidInputError: the file is not of the format, or its columns are not as they must be.
        OSError: the file cannot be read.
    """
    system, inner = file_system(path)
    with system.open(inner, "rb") as file:
        pieces: Iterable[tuple[int, int, int]] = FORMATS[kind].cut(
            file, path, columns, rows, MOST_BYTES
        )
        shards, first = [], 0
        for place, (start, stop, count) in enumerate(pieces):
            name = f"part-{number:05}-{place:06}.{kind}"
            shards.append(Shard(name, path, start, stop, count, first))
            first += count
    return shards


def read_shard(shard: Shard, kind: str, columns: Columns) -> Rows:
    """Reads the rows of a shard.

    Raises:
        InvalidInputError: the file has changed since it was cut.
        OSError: the file cannot be read.
    """
    system, inner = file_system(shard.path)
    with system.open(inner, "rb") as file:
        rows: Rows = FORMATS[kind].read(file, shard.path, shard.start, shard.stop, columns)
    if len(rows.columns[0]) != shard.rows:
        raise InvalidInputError(
            f"{shard.path}: expected {shard.rows} rows from row {shard.first} on, found "
            f"{len(rows.columns[0])}; the file has changed"
        )
    return rows
