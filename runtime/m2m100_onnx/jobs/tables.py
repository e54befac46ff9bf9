"""Shards of Parquet: ranges of rows. Knows Arrow's tables; knows no translating."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from m2m100_onnx.errors import DependencyError, InvalidInputError
from m2m100_onnx.jobs.columns import Columns, Results

__all__ = ["ParquetRows"]


class ParquetRows:
    """Rows of Parquet; all columns keep their types."""

    def __init__(self, table: Any, columns: Columns) -> None:
        self.problems: dict[int, str] = {}
        self.columns: list[list[Any]] = [table.column(name).to_pylist() for name in columns.read]
        self._table, self._added = table, columns.added

    @staticmethod
    def cut(
        file: BinaryIO, path: str, columns: Columns, rows: int, most: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yields `(start, stop, rows)` of each shard; reads the footer alone."""
        opened = _opened(file, path)
        schema = opened.schema_arrow
        columns.check(schema.names, path)
        for name in columns.read:
            kind = schema.field(name).type
            if not _is_text(kind):
                raise InvalidInputError(f"{path}: column {name!r}: expected text, found {kind}")
        total = opened.metadata.num_rows
        groups = map(opened.metadata.row_group, range(opened.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        step = max(1, min(rows, most * total // size if size else rows))
        for start in range(0, total, step):
            stop = min(start + step, total)
            yield start, stop, stop - start

    @classmethod
    def read(
        cls, file: BinaryIO, path: str, start: int, stop: int, columns: Columns
    ) -> ParquetRows:
        """Reads the rows of a shard, a batch of their row groups after the other."""
        import pyarrow as pa

        opened = _opened(file, path)
        parts = list(_ranges(opened, start, stop))
        return cls(pa.Table.from_batches(parts, opened.schema_arrow), columns)

    def encode(self, results: Results) -> bytes:
        """Returns the file: the table with the translations."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self._table
        for name, values in zip(self._added, results.columns, strict=True):
            table = table.append_column(name, pa.array(values, pa.string()))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data: bytes = sink.getvalue().to_pybytes()
        return data


def _ranges(opened: Any, start: int, stop: int) -> Iterator[Any]:
    """Yields batches with the rows from `start` to `stop` of a file."""
    first = 0
    for number in range(opened.metadata.num_row_groups):
        rows = opened.metadata.row_group(number).num_rows
        if first < stop and first + rows > start:
            place = first
            for batch in opened.iter_batches(batch_size=4096, row_groups=[number]):
                low, high = max(start - place, 0), min(stop - place, len(batch))
                if low < high:
                    yield batch.slice(low, high - low)
                place += len(batch)
                if place >= stop:
                    break
        first += rows


def _opened(file: BinaryIO, path: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DependencyError(
            f"Parquet needs {error.name}; run `pip install 'm2m100-onnx[ray]'`"
        ) from error
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise InvalidInputError(
            f"{path}: expected Parquet, found something else: {error}"
        ) from None


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    views = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or views(kind))
