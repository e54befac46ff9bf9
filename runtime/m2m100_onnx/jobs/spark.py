"""Bulk translation on Spark: the class of `ray_data.py` in `mapInPandas`.

Spark reads and writes, and runs a task again that has failed. Knows Spark's frames and workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from m2m100_onnx.jobs.columns import Columns
from m2m100_onnx.jobs.ray_data import TranslateBatch

__all__ = ["map_in_pandas", "translate"]

_opened: dict[str, TranslateBatch] = {}
"""The bundle that this Python worker has open, by how; Spark keeps workers for further tasks."""


def translate(frame: Any, bundle: str, **arguments: Any) -> Any:
    """Returns a Spark frame with the columns of translations added; it is computed when it is read.

    Rows keep their columns. Their order is Spark's.

    Args:
        frame: a `pyspark.sql.DataFrame`.
        bundle: a folder on each node, a name on the hub, or a URI of fsspec's.
        **arguments: those of `TranslateBatch`: languages, columns, options.

    Raises:
        InvalidInputError: a column is missing, or there already; a language is given twice or not
            at all.
    """
    names = {
        "text_column": "text",
        "source_lang": "source_lang",
        "source_lang_column": "source_lang_column",
        "target_lang": "target_lang",
        "target_lang_column": "target_lang_column",
        "output_column": "output",
    }
    columns = Columns(**{f: arguments[name] for name, f in names.items() if name in arguments})
    columns.check(frame.columns, "frame")
    from pyspark.sql.types import StringType, StructField, StructType

    added = [StructField(name, StringType(), nullable=True) for name in columns.added]
    schema = StructType([*frame.schema.fields, *added])
    return frame.mapInPandas(map_in_pandas(bundle, **arguments), schema)


def map_in_pandas(bundle: str, **arguments: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Returns a function for `DataFrame.mapInPandas`; arguments as `translate`.

    A batch has `spark.sql.execution.arrow.maxRecordsPerBatch` rows, which are sorted by length. A
    worker's threads are `spark.task.cpus`.
    """

    def run(frames: Iterator[Any]) -> Iterator[Any]:
        worker = _worker(bundle, arguments)
        for frame in frames:
            yield worker(frame)

    return run


def _worker(bundle: str, arguments: Mapping[str, Any]) -> TranslateBatch:
    from pyspark import TaskContext

    context = TaskContext.get()
    # Beside a Translator of another job's there may be no room.
    key = json.dumps([bundle, arguments], sort_keys=True, default=repr)
    if key not in _opened:
        _opened.clear()
        threads = {"intra_op_num_threads": context.cpus() if context else 1}
        opening = {**threads, **(arguments.get("opening") or {})}
        _opened[key] = TranslateBatch(bundle, **{**arguments, "opening": opening})
    return _opened[key]
