"""Shards of lines: JSON Lines and CSV.

Both are cut at the ends of rows, so that a worker reads its bytes alone. A row that cannot be read
is a problem of that row. Knows bytes and columns; knows no translating.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.jobs.columns import Columns, Results

__all__ = ["CsvRows", "JsonRows"]

_UNREAD = "unread"
"""The key of what was in a line that is no JSON object."""
_BOM = b"\xef\xbb\xbf"
_LONGEST_FIELD = 1 << 26


def _pieces(
    ends: Iterable[int], start: int, rows: int, most: int
) -> Iterator[tuple[int, int, int]]:
    """Cuts rows, given by the byte behind each, into `(start, stop, rows)`."""
    count, stop = 0, start
    for end in ends:
        if count and (count == rows or end - start > most):
            yield start, stop, count
            start, count = stop, 0
        count, stop = count + 1, end
    if count:
        yield start, stop, count


class JsonRows:
    """Rows of JSON Lines. A line stays as it is, byte for byte, and gets further keys at its end.

    Blank lines are no rows.
    """

    def __init__(self, lines: list[bytes], columns: Columns) -> None:
        self.columns: list[list[Any]] = [[] for _ in columns.read]
        self.problems: dict[int, str] = {}
        self._lines, self._added = lines, columns.added
        for place, line in enumerate(lines):
            values, problem = _read_object(line, columns)
            if problem is not None:
                self.problems[place] = problem
            for column, value in zip(self.columns, values, strict=True):
                column.append(value)

    @staticmethod
    def cut(
        file: BinaryIO, path: str, columns: Columns, rows: int, most: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yields `(start, stop, rows)` of each shard; the first object must have the columns."""

        def ends() -> Iterator[int]:
            end, looked = 0, False
            for line in file:
                end += len(line)
                if not line.strip():
                    continue
                if not looked and isinstance(found := _parsed(line), dict):
                    columns.check([*found], f"{path}: the first object")
                    looked = True
                yield end

        return _pieces(ends(), 0, rows, most)

    @classmethod
    def read(cls, file: BinaryIO, path: str, start: int, stop: int, columns: Columns) -> JsonRows:  # noqa: ARG003 - as the others
        """Reads the lines of a shard."""
        file.seek(start)
        data = file.read(stop - start)
        return cls([line for line in data.split(b"\n") if line.strip()], columns)

    def encode(self, results: Results) -> bytes:
        """Returns the lines with the translations."""
        written = bytearray()
        for line, *values in zip(self._lines, *results.columns, strict=True):
            found = _parsed(line)
            added = dict(zip(self._added, values, strict=True))
            if isinstance(found, dict) and not any(name in found for name in self._added):
                more = _json(added)
                head = line.strip().removeprefix(_BOM)[:-1].rstrip()
                written += head + (b", " if found else b"") + more[1:] + b"\n"
            else:
                text = line.decode("utf-8", "backslashreplace").strip()
                written += _json({_UNREAD: text, **added}) + b"\n"
        return bytes(written)


def _json(value: dict[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 has not, becomes the escape that JSON has for it.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.strip().removeprefix(_BOM))
    except (ValueError, RecursionError):
        return None


def _read_object(line: bytes, columns: Columns) -> tuple[list[Any], str | None]:
    """Returns the values of the columns, None where there is none, and why they cannot be read."""
    found = _parsed(line)
    if not isinstance(found, dict):
        return [None] * len(columns.read), "InvalidInputError: expected a JSON object in the line"
    for name in columns.read:
        if name not in found:
            keys = ", ".join(map(repr, found)) or "none"
            problem = f"InvalidInputError: expected a column {name!r}, found {keys}"
            return [found.get(name) for name in columns.read], problem
    for name in columns.added:
        if name in found:
            problem = f"InvalidInputError: expected no column {name!r}, which is to be added"
            return [found[name] for name in columns.read], problem
    return [found[name] for name in columns.read], None


class CsvRows:
    """Rows of CSV (RFC 4180) with a header, in UTF-8.

    What is no UTF-8 stays as it is. A row with more or fewer fields than the header is a problem,
    and is written as its fields joined in the message.
    """

    def __init__(self, header: list[str], rows: list[list[str]], columns: Columns) -> None:
        self.problems: dict[int, str] = {}
        self._header, self._rows, self._added = header, rows, columns.added
        width = len(header)
        for place, row in enumerate(rows):
            if len(row) != width:
                shown = json.dumps(row, ensure_ascii=False)
                self.problems[place] = (
                    f"InvalidInputError: expected {width} fields, found {len(row)}: {shown}"
                )
        places = [header.index(name) for name in columns.read]
        self.columns: list[list[Any]] = [
            [row[place] if n not in self.problems else None for n, row in enumerate(rows)]
            for place in places
        ]

    @staticmethod
    def cut(
        file: BinaryIO, path: str, columns: Columns, rows: int, most: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yields `(start, stop, rows)` of each shard, the header not in it."""
        records = _Records(file, path)
        header = next(iter(records), None)
        columns.check(header or [], path)
        return _pieces((records.end for _ in records), records.end, rows, most)

    @classmethod
    def read(cls, file: BinaryIO, path: str, start: int, stop: int, columns: Columns) -> CsvRows:
        """Reads the header and the rows of a shard."""
        header = next(iter(_Records(file, path)), [])
        columns.check(header, path)
        file.seek(start)
        return cls(header, list(_Records(io.BytesIO(file.read(stop - start)), path)), columns)

    def encode(self, results: Results) -> bytes:
        """Returns the file: the header, and the rows with the translations."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self._header, *self._added])
        for place, (row, *values) in enumerate(zip(self._rows, *results.columns, strict=True)):
            # What has too many or too few fields is in the message.
            fields = [""] * len(self._header) if place in self.problems else row
            writer.writerow([*fields, *("" if value is None else value for value in values)])
        return text.getvalue().encode("utf-8", "surrogateescape")


class _Records:
    """The records of CSV, blank lines left out.

    Attributes:
        end: the byte behind the last record.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.end, self._line = 0, 0
        self._file, self._path = file, path
        csv.field_size_limit(_LONGEST_FIELD)
        self._reader = csv.reader(self._lines(), strict=True)

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            text = line.removeprefix(_BOM) if self.end == 0 else line
            self.end += len(line)
            self._line += 1
            yield text.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[list[str]]:
        try:
            for record in self._reader:
                if record:
                    yield record
        except csv.Error as error:
            raise InvalidInputError(f"{self._path}: line {self._line} is no CSV: {error}") from None
