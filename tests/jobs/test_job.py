"""`m2m100 jobs translate` on two nodes: what it writes, what it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import (
    BAD,
    BAD_CODES,
    FLAGS,
    check,
    command,
    expected,
    make_rows,
    read_output,
    run,
    write_jsonl,
)

from m2m100_onnx import Translator
from terminals import on_terminal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_output_is_that_of_one_process(
    cluster: Any, bundle: Path, translator: Translator, sentences: list[str], folder: Path
) -> None:
    rows = make_rows(sentences[:60], 700, every=19)
    write_jsonl(folder / "in" / "a.jsonl", rows[:300])
    write_jsonl(folder / "in" / "b.jsonl", rows[300:])
    argv = ("--input", folder / "in", "--output", folder / "out", "--format", "jsonl")
    argv += ("--source-lang-column", "lang", "--target-lang", "de", "-m", bundle, *FLAGS)
    argv += ("--address", cluster.address, "--shard-rows", 100)
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    wanted = expected(translator, rows)
    check(rows, read_output(folder / "out"), wanted)
    reasons = [row["translation_error"] for row in read_output(folder / "out")]
    for _, reason in (*BAD, *BAD_CODES):
        assert any(each and reason in each for each in reasons), reason

    summary = json.loads(done.stdout)
    assert summary == json.loads((folder / "out" / "_summary.json").read_text())
    bad = sum(isinstance(each, Exception) for each in wanted)
    assert (summary["rows"], summary["sentences"], summary["errors"]) == (700, 700 - bad, bad)
    assert f"{bad} of 700 rows could not be translated" in done.stderr
    assert (summary["shards"], summary["shards_run"]) == (7, 7)
    assert len({actor["node"] for actor in summary["actors"].values()}) == 2
    assert sum(actor["sentences"] for actor in summary["actors"].values()) == 700 - bad
    assert summary["languages"]["en-de"]["sentences"] == 700 - bad
    assert summary["skew"]["busiest_actor_over_mean"] >= 1.0
    left = [path.name for path in (folder / "out").rglob("*") if path.name.startswith(".")]
    assert left == []

    # Another run does not touch it; with --resume, what is missing is run again and no more.
    again = run(*argv)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"output: {folder / 'out'}: expected no such folder or an empty one" in again.stderr
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("part-*")}
    lost = folder / "out" / "part-00001-000002.jsonl"
    lost.unlink()
    resumed = run(*argv, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["shards_run"] == 1
    check(rows, read_output(folder / "out"), wanted)
    now = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("part-*")}
    assert {path for path in kept if now[path] != kept[path]} == {lost}

    # Another job does not go on in its folder.
    other = run(*argv, "--resume", "--beam-size", "2")
    assert other.returncode == 2
    assert "its job had another job" in other.stderr
    write_jsonl(folder / "in" / "b.jsonl", rows[300:-1])
    other = run(*argv, "--resume")
    assert other.returncode == 2
    assert "its job had another inputs" in other.stderr


def test_parquet_and_csv(
    cluster: Any, bundle: Path, translator: Translator, sentences: list[str], folder: Path
) -> None:
    texts = [*sentences[:50], "word " * 1000]
    wanted = expected(translator, [{"text": text, "lang": "en"} for text in texts])
    table = pa.table({"id": pa.array(range(51), pa.int16()), "text": texts})
    pq.write_table(table, folder / "in.parquet", row_group_size=20)
    lines = [
        "id,text",
        *(f'{n},"{text}"' for n, text in enumerate(t.replace('"', '""') for t in texts)),
    ]
    (folder / "in.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind in ("parquet", "csv"):
        out = folder / f"out-{kind}"
        argv = ("--input", folder / f"in.{kind}", "--output", out, "--format", kind)
        argv += ("-s", "en", "-t", "de", "-m", bundle, *FLAGS, "--address", cluster.address)
        done = run(*argv, "--shard-rows", 30)
        assert done.returncode == 0, done.stderr
        found = read_output(out, kind)
        assert [int(row["id"]) for row in found] == [*range(51)]
        assert [row["text"] for row in found] == texts
        assert [row["translation"] for row in found[:50]] == wanted[:50]
        assert not found[50]["translation"]
        assert found[50]["translation_error"] == f"InputTooLongError: {wanted[50].message}"
    schema = pq.read_schema(folder / "out-parquet" / "part-00000-000000.parquet")
    assert schema.field("id").type == pa.int16()


def test_no_rows(cluster: Any, bundle: Path, folder: Path) -> None:
    write_jsonl(folder / "in.jsonl", [])
    argv = ("--input", folder / "in.jsonl", "--output", folder / "out", "--format", "jsonl")
    done = run(*argv, "-m", bundle, "-s", "en", "-t", "de", "--address", cluster.address)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        *("_job.json", "_summary.json")
    ]


def test_progress_on_a_terminal(
    cluster: Any, bundle: Path, sentences: list[str], folder: Path
) -> None:
    path = write_jsonl(folder / "in.jsonl", make_rows(sentences[:5], 20))
    argv = ("--input", path, "--output", folder / "out", "--format", "jsonl", "-m", bundle)
    argv += ("-s", "en", "-t", "de", "--address", cluster.address, "--shard-rows", 5)
    output, shown = on_terminal(command(*argv), os.environ, timeout=600)
    assert json.loads(output)["rows"] == 20
    assert re.search(r"100%.*20 rows, [\d,.]+ rows/s", shown)


def refused(folder: Path, cluster: Any, bundle: Any, *more: Any) -> str:
    """The error of a job that writes nothing."""
    argv = ("--input", folder / "in.jsonl", "--output", folder / "out", "--format", "jsonl")
    argv += ("-m", bundle, "--address", cluster.address, *FLAGS, *more)
    done = run(*argv)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert not (folder / "out").exists()
    (line,) = (each for each in done.stderr.splitlines() if each.startswith("m2m100: error: "))
    return line


def test_what_is_refused_before_anything_is_written(
    cluster: Any, bundle: Path, folder: Path
) -> None:
    write_jsonl(folder / "in.jsonl", [{"id": 1, "words": "a", "lang": "en"}])
    german = ("--target-lang", "de")
    both = ("--source-lang", "en", *german)
    assert "expected a column 'text', found 'id', 'words', 'lang'" in refused(
        folder, cluster, bundle, *both
    )
    words = ("--text-column", "words")
    assert "--source-lang: expected a code for all rows" in refused(
        folder, cluster, bundle, *german
    )
    found = refused(folder, cluster, bundle, *words, "-s", "xx", *german)
    assert "unknown language 'xx'" in found
    found = refused(folder, cluster, bundle, *words, *both, "--num-hypotheses", "3")
    assert "num_hypotheses: expected at most" in found
    found = refused(folder, cluster, folder / "none", *words, *both)
    assert "JobError" not in found
    assert "node " in found
    assert "BundleError" in found
    found = refused(folder, cluster, bundle, *words, *both, "--cpus", "2")
    assert "--cpus: expected a node with 2 CPUs" in found
    found = refused(folder, cluster, bundle, *words, *both, "--output-column", "lang")
    assert "expected no column 'lang'" in found


def test_no_cluster_at_the_address(bundle: Path, folder: Path) -> None:
    write_jsonl(folder / "in.jsonl", [{"text": "a"}])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    argv = ("--input", folder / "in.jsonl", "--output", folder / "out", "--format", "jsonl")
    argv += ("-m", bundle, "-s", "en", "-t", "de", "--address")
    for place in (address, f"ray://{address}"):
        began = time.monotonic()
        done = run(*argv, place)
        assert done.returncode == 2
        assert f"address: {place}: found no Ray cluster there" in done.stderr
        assert time.monotonic() - began < 20
    assert "--address: expected auto, HOST:PORT" in run(*argv, "nowhere").stderr
    assert not (folder / "out").exists()
