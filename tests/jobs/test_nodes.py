"""Nodes that differ: disks that are full, bundles that cannot be read, another processor."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from running import (
    argv,
    check,
    expected,
    finished,
    make_rows,
    read_output,
    run,
    start,
    wait_for,
    workers,
    write_jsonl,
)

from m2m100_onnx import Translator
from m2m100_onnx.jobs.columns import Columns
from m2m100_onnx.jobs.ray_job import Job, _Worker

pytestmark = pytest.mark.long
HERE = Path(__file__).resolve().parent
OLD_PROCESSOR = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 15
flags\t\t: fpu sse sse2 ssse3 sse4_1

"""


def faulty(cluster: Any, **faults: str) -> Any:
    """Adds a node whose workers have faults: see faults/sitecustomize.py."""
    paths = os.pathsep.join([str(HERE / "faults"), os.environ["PYTHONPATH"]])
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": paths, **faults})
    cluster.wait_for_nodes()
    return node


def healthy(cluster: Any) -> Any:
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return node


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("m2m100: error: ")
    return line


def test_a_full_disk_on_one_node(
    fresh: Any, bundle: Path, translator: Translator, short: list[str], tmp_path: Path
) -> None:
    rows = make_rows(short, 600)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    good = healthy(fresh)
    broken = faulty(fresh, FAULT_DISK_FULL="part-")
    arguments = argv(path, out, bundle, fresh, "--shard-rows", 50)
    error = last_error(run(*arguments))
    assert f"{broken.node_id[:8]}): OSError: [Errno 28] No space left on device" in error
    assert good.node_id[:8] not in error
    kept = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert [p.name for p in out.rglob(".*")] == []
    fresh.remove_node(broken)
    again = run(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    check(rows, read_output(out), expected(translator, rows))
    assert {part: part.stat().st_mtime_ns for part in kept} == kept


@pytest.mark.parametrize("name", ["manifest.json", "vocab.json", "config.json"])
def test_a_bundle_that_one_node_cannot_read(
    fresh: Any, bundle: Path, short: list[str], tmp_path: Path, name: str
) -> None:
    path, out = write_jsonl(tmp_path / "in.jsonl", make_rows(short, 400)), tmp_path / "out"
    good = healthy(fresh)
    broken = faulty(fresh, FAULT_UNREADABLE=name)
    error = last_error(run(*argv(path, out, bundle, fresh, "--shard-rows", 20)))
    assert broken.node_id[:8] in error
    assert good.node_id[:8] not in error
    assert name in error
    assert "Permission denied" in error


def test_a_shard_that_kills_its_workers(
    fresh: Any, bundle: Path, short: list[str], tmp_path: Path
) -> None:
    path, out = write_jsonl(tmp_path / "in.jsonl", make_rows(short, 100)), tmp_path / "out"
    broken = faulty(fresh, FAULT_KILL="part-00000-000002.jsonl")
    done = run(*argv(path, out, bundle, fresh, "--shard-rows", 20))
    error = last_error(done)
    assert "the worker died each time at part-00000-000002.jsonl" in error
    assert broken.node_id[:8] in error
    names = {part.name for part in out.glob("part-*")}
    assert "part-00000-000002.jsonl" not in names
    assert {"part-00000-000000.jsonl", "part-00000-000001.jsonl"} <= names


def test_another_processor_has_its_own_weights_cache(
    fresh: Any, bundle: Path, translator: Translator, short: list[str], tmp_path: Path
) -> None:
    """Also one without AVX, as far as /proc/cpuinfo goes: no such machine was at hand."""
    rows = make_rows(short, 400)
    path, out, cache = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out", tmp_path / "c"
    healthy(fresh)
    faulty(fresh, FAULT_PROCESSOR=OLD_PROCESSOR)
    done = run(*argv(path, out, bundle, fresh, "--shard-rows", 20, "--cache-dir", cache))
    assert done.returncode == 0, done.stderr
    check(rows, read_output(out), expected(translator, rows))
    records = [record.read_text(encoding="utf-8") for record in cache.rglob("*.json")]
    processors = {text.split('"processor": "')[1][:16] for text in records}
    assert len(processors) == 2


def test_another_bundle_at_the_same_place(bundle: Path, tmp_path: Path) -> None:
    columns = Columns(source_lang="en", target_lang="de")
    job = Job((), str(tmp_path), "jsonl", str(bundle), columns)
    failure = _Worker(job, "the identity of another bundle")._failure
    assert failure is not None
    assert f"{bundle}: expected the bundle that other nodes have, found another" in failure


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_an_interrupted_job_is_resumed(
    fresh: Any,
    bundle: Path,
    translator: Translator,
    short: list[str],
    tmp_path: Path,
    number: int,
    status: int,
) -> None:
    rows = make_rows(short, 1200)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    healthy(fresh)
    healthy(fresh)
    arguments = argv(path, out, bundle, fresh, "--shard-rows", 50)
    job = start(*arguments)
    wait_for(lambda: finished(out) >= 3 or job.poll() is not None)
    job.send_signal(number)
    began = time.monotonic()
    output, errors = job.communicate(timeout=60)
    assert (job.returncode, output) == (status, ""), errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < 20
    wait_for(lambda: not workers())
    done = run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    check(rows, read_output(out), expected(translator, rows))
