"""`TranslateBatch` in a pipeline of the user's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from running import GREEDY, expected, make_rows

from m2m100_onnx import InvalidInputError, JobError, M2M100Error, Translator
from m2m100_onnx.jobs.ray_data import TranslateBatch


class Reports(TranslateBatch):
    """Says how its translator was opened."""

    def __call__(self, batch: Any) -> Any:
        found = super().__call__(batch)
        threads = pa.array([self.translator.model.threads] * len(found))
        return found.append_column("threads", threads)


@pytest.fixture
def ray(cluster: Any) -> Any:
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_map_batches(ray: Any, bundle: Path, translator: Translator, sentences: list[str]) -> None:
    rows = [{"id": n, "text": text, "lang": "en"} for n, text in enumerate(sentences[:200])]
    found = (
        ray.data.from_items(rows, override_num_blocks=8)
        .map_batches(
            Reports,
            fn_constructor_args=[str(bundle)],
            fn_constructor_kwargs={"source_lang": "en", "target_lang": "de", **GREEDY},
            batch_size=50,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        .take_all()
    )
    by_id = {row["id"]: row for row in found}
    assert sorted(row["id"] for row in found) == [*range(200)]
    wanted = expected(translator, rows)
    assert [by_id[n]["translation"] for n in range(200)] == wanted
    # Of the machine's cores it takes those that Ray has given it.
    assert {row["threads"] for row in found} == {1}


@pytest.mark.long
def test_a_bundle_that_cannot_be_opened_names_the_node(ray: Any, tmp_path: Path) -> None:
    def opened() -> str:
        try:
            TranslateBatch(str(tmp_path / "none"), source_lang="en", target_lang="de")
        except JobError as error:
            return str(error)
        return ""

    task = ray.remote(opened).options(num_cpus=1).remote()
    message = ray.get(task)
    node = next(n["NodeID"] for n in ray.nodes() if n["NodeID"][:8] in message)
    assert node
    assert "BundleError" in message


def batches(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "table": pa.table(columns),
        "frame": pd.DataFrame(columns),
        "arrays": {name: np.array(values, dtype=object) for name, values in columns.items()},
    }


@pytest.mark.parametrize("kind", ["table", "frame", "arrays"])
def test_every_kind_of_batch(
    bundle: Path, translator: Translator, sentences: list[str], kind: str
) -> None:
    rows = make_rows(sentences[:20], 20, every=50)
    rows[3]["text"], rows[4]["lang"] = "word " * 1000, "xx"
    batch = batches(rows)[kind]
    translate = TranslateBatch(str(bundle), source_lang_column="lang", target_lang="de", **GREEDY)
    found = translate(batch)
    assert type(found) is type(batch)
    frame = found.to_pandas() if kind == "table" else pd.DataFrame(found)
    assert [*frame.columns] == [
        *("id", "lang", "text", "translation", "translation_error", "translation_flag")
    ]
    out = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for row, want, each in zip(rows, expected(translator, rows), out, strict=True):
        assert {name: each[name] for name in row} == row
        error = isinstance(want, M2M100Error)
        assert each["translation"] == (None if error else want)
        assert (each["translation_error"] is not None) == error


def test_flags(bundle: Path, sentences: list[str]) -> None:
    longest = sentences[-1]
    given = {"source_lang": "en", "target_lang": "de", "beam_size": 1}
    found = TranslateBatch(str(bundle), **given, max_length=5)({"text": np.array([longest, ""])})
    assert [*found["translation_flag"]] == ["unfinished", None]
    found = TranslateBatch(str(bundle), **given)({"text": np.array([sentences[0]])})
    assert [*found["translation_flag"]] == [None]


def test_what_is_refused(bundle: Path) -> None:
    given = {"source_lang": "en", "target_lang": "de"}
    translate = TranslateBatch(str(bundle), **given)
    with pytest.raises(InvalidInputError, match="expected a column 'text'"):
        translate({"words": np.array(["a"])})
    with pytest.raises(InvalidInputError, match="expected no column 'translation'"):
        translate({"text": np.array(["a"]), "translation": np.array(["b"])})
    with pytest.raises(InvalidInputError, match="batch: expected a table"):
        translate([1])
    with pytest.raises(JobError, match=r"node .*UnknownLanguageError.*'xx'"):
        TranslateBatch(str(bundle), source_lang="en", target_lang="xx")
    with pytest.raises(JobError, match=r"node .*InvalidInputError.*beam_size"):
        TranslateBatch(str(bundle), **given, beam_size=0)


def test_a_missing_file_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    next(broken.glob("*.onnx")).unlink()
    with pytest.raises(JobError, match=r"node .*BundleError.*\.onnx"):
        TranslateBatch(str(broken), source_lang="en", target_lang="de")
