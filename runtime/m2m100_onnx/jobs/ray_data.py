"""Bulk translation on Ray: a class for `Dataset.map_batches`, and what opens it on each node.

Knows Ray's workers. `ray_job.py` makes a whole job of files with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2m100_onnx.errors import InvalidInputError, JobError, M2M100Error
from m2m100_onnx.jobs.bundles import node_name, on_this_node
from m2m100_onnx.jobs.columns import Columns, Results, share_of_memory, translate
from m2m100_onnx.process import cores
from m2m100_onnx.translator import Translator

__all__ = ["TranslateBatch", "open_translator"]


class TranslateBatch:
    """Translates batches of rows in an actor of Ray Data; each actor opens the bundle once.

        dataset.map_batches(
            TranslateBatch,
            fn_constructor_args=["bundles/demo"],
            fn_constructor_kwargs={"source_lang": "en", "target_lang": "de"},
            batch_size=1024, num_cpus=1, compute=ActorPoolStrategy(size=2),
        )

    An actor's threads are its CPUs, and an actor with a GPU uses it. The actors of a node map the
    same weights cache. A batch is sorted by length before it is cut into the model's batches, so
    large ones keep these full. A batch keeps its rows, their order and all columns.

    Attributes:
        columns: which columns are read and added.
        translator: translates.
    """

    def __init__(
        self,
        bundle: str,
        *,
        text_column: str = "text",
        source_lang: str | None = None,
        source_lang_column: str | None = None,
        target_lang: str | None = None,
        target_lang_column: str | None = None,
        output_column: str = "translation",
        opening: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Opens a bundle.

        Args:
            bundle: a folder on each node, a name on the hub, or a URI of fsspec's such as
                `s3://bucket/bundle`, which is fetched once a node.
            text_column: the column of texts.
            source_lang: their language, if it is one for all rows.
            source_lang_column: the column of their languages, if it is not.
            target_lang: the language to translate into, if it is one for all rows.
            target_lang_column: the column of these languages, if it is not.
            output_column: the column of translations that is added. `OUTPUT_error` says why there
                is none, `OUTPUT_flag` is `unfinished` or `empty` for a suspicious one.
            opening: further arguments of `Translator`, such as `cache_dir`.
            **options: see `TranslateOptions`. `max_batch_bytes` is by default the actor's share of
                a quarter of the node's memory.

        Raises:
            InvalidInputError: a language is given twice or not at all.
            JobError: the bundle cannot be opened on this node, which the message names.
        """
        self.columns = Columns(
            text_column,
            *(source_lang, source_lang_column, target_lang, target_lang_column),
            output_column,
        )
        try:
            self.translator = open_translator(bundle, opening or {})
            self._options = self._checked(options)
        except (M2M100Error, OSError) as error:
            message = f"node {node_name()}: {type(error).__name__}: {error}"
            raise JobError(message) from error

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a call, after the languages and they were checked once."""
        threads = self.translator.model.threads
        given = {"max_batch_bytes": share_of_memory(threads), **options}
        for code in (self.columns.source_lang, self.columns.target_lang):
            if code is not None:
                self.translator.tokenizer.language_id(code)
        self.translate([[] for _ in self.columns.read], {}, given)
        return given

    def translate(
        self,
        rows: list[list[Any]],
        problems: Mapping[int, str],
        options: Mapping[str, Any] | None = None,
    ) -> Results:
        """Translates columns of values; see `columns.translate`."""
        given = self._options if options is None else options
        return translate(self.translator, self.columns, rows, problems, given)

    def __call__(self, batch: Any) -> Any:
        """Translates a batch of Ray Data's or Spark's.

        Args:
            batch: a `pyarrow.Table`, a `pandas.DataFrame`, or a dict of arrays.

        Returns:
            The same kind, with the columns added.

        Raises:
            InvalidInputError: a column is missing, or there already.
            M2M100Error: what is wrong is not one row.
        """
        if isinstance(batch, dict):
            return self._in_arrays(batch)
        if hasattr(batch, "append_column"):
            return self._in_table(batch)
        if hasattr(batch, "assign"):
            return self._in_frame(batch)
        kind = type(batch).__name__
        raise InvalidInputError(f"batch: expected a table, a frame or a dict, found {kind}")

    def _in_arrays(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        self.columns.check([*batch], "batch")
        found = self.translate([[*batch[name].tolist()] for name in self.columns.read], {})
        added = (np.array(values, dtype=object) for values in found.columns)
        return {**batch, **dict(zip(self.columns.added, added, strict=True))}

    def _in_table(self, batch: Any) -> Any:
        import pyarrow as pa

        self.columns.check(batch.column_names, "batch")
        found = self.translate([batch.column(n).to_pylist() for n in self.columns.read], {})
        for name, values in zip(self.columns.added, found.columns, strict=True):
            batch = batch.append_column(name, pa.array(values, pa.string()))
        return batch

    def _in_frame(self, batch: Any) -> Any:
        self.columns.check([*batch.columns], "batch")
        # What is missing is NaN or None, as the version of pandas and the type will have it.
        columns = (batch[name].astype(object) for name in self.columns.read)
        found = self.translate([[*column.where(column.notna(), None)] for column in columns], {})
        return batch.assign(**dict(zip(self.columns.added, found.columns, strict=True)))


def open_translator(bundle: str, opening: Mapping[str, Any]) -> Translator:
    """Opens a bundle in this worker, with the CPUs and the GPU that Ray has given it.

    Outside a worker of Ray's, the defaults of `Translator` hold.

    Args:
        bundle: a folder, a name on the hub or a URI.
        opening: arguments of `Translator`, which win.

    Raises:
        M2M100Error: the bundle cannot be fetched or opened.
        OSError: the node's disk takes no more.
    """
    # Ray hides cores from OpenMP alone; onnxruntime would take all of the machine.
    given = {**_resources(), **opening}
    return Translator(on_this_node(bundle), **given)


def _resources() -> dict[str, Any]:
    try:
        import ray
    except ImportError:
        return {}
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return {}
    assigned = ray.get_runtime_context().get_assigned_resources()
    threads = max(1, min(int(assigned.get("CPU", 1)), cores()))
    device = {"device": "cuda"} if assigned.get("GPU", 0) else {}
    return {"intra_op_num_threads": threads, **device}
