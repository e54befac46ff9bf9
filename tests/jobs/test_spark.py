"""The same translations in Spark's `mapInPandas`, on a local Spark with two workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import GREEDY, expected

from m2m100_onnx import InvalidInputError, M2M100Error, Translator
from m2m100_onnx.jobs import spark as jobs

pytestmark = pytest.mark.long  # Spark takes long to begin.


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "40")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    yield session
    session.stop()


def test_translations_are_those_of_one_process(
    spark: Any, bundle: Path, translator: Translator, sentences: list[str]
) -> None:
    rows = [
        {"id": n, "lang": "en", "text": text}
        for n, text in enumerate([*sentences[:150], None, "word " * 1000])
    ]
    rows[7]["lang"] = "xx"
    frame = spark.createDataFrame(rows, "id long, lang string, text string").repartition(4)
    found = jobs.translate(
        frame, str(bundle), source_lang_column="lang", target_lang="de", **GREEDY
    ).collect()
    by_id = {row["id"]: row.asDict() for row in found}
    assert sorted(row["id"] for row in found) == [*range(len(rows))]
    for row, want in zip(rows, expected(translator, rows), strict=True):
        out = by_id[row["id"]]
        assert {name: out[name] for name in row} == row
        if isinstance(want, M2M100Error):
            assert out["translation"] is None
            assert out["translation_error"] == f"{type(want).__name__}: {want.message}"
        else:
            assert (out["translation"], out["translation_error"]) == (want, None)
    assert sum(row["translation_error"] is not None for row in by_id.values()) == 3


def test_what_is_refused(spark: Any, bundle: Path) -> None:
    frame = spark.createDataFrame([{"words": "a"}])
    with pytest.raises(InvalidInputError, match="frame: expected a column 'text', found 'words'"):
        jobs.translate(frame, str(bundle), source_lang="en", target_lang="de")
    with pytest.raises(InvalidInputError, match=r"target_lang: .* found none"):
        jobs.translate(frame, str(bundle), source_lang="en", text_column="words")
    refused = jobs.translate(
        frame, str(bundle / "none"), source_lang="en", target_lang="de", text_column="words"
    )
    with pytest.raises(Exception, match=r"JobError: node .*BundleError"):
        refused.collect()
