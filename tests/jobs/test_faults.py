"""What a cluster does to a job: workers, nodes and drivers die, disks fill up, nodes differ.

The 50,000 rows take minutes; what each test breaks, it breaks in the middle of the work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import FLAGS, check, command, expected, make_rows, read_output, run, write_jsonl

from m2m100_onnx import Translator

pytestmark = pytest.mark.long
HERE = Path(__file__).resolve().parent
MANY = 50_000


@pytest.fixture(scope="module")
def short(sentences: list[str]) -> list[str]:
    """Short texts, so that many rows take minutes and not hours."""
    return sentences[:120]


@pytest.fixture
def fresh() -> Iterator[Any]:
    """A cluster of its own for a test that breaks it: a head without CPUs and two nodes of one."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    found.shutdown()


def wait_for(true: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


def finished(folder: Path) -> int:
    return len([*folder.glob("part-*")])


def workers() -> set[int]:
    """The processes of actors that translate."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, encoding="utf-8", check=True
    )
    mine = (line.split(None, 1) for line in listed.stdout.splitlines())
    return {int(pid) for pid, args in mine if "MapWorker(MapBatches(_Worker))" in args}


def argv(rows: Path, out: Path, bundle: Any, cluster: Any, *more: Any) -> tuple[Any, ...]:
    columns = ("--source-lang-column", "lang", "--target-lang", "de")
    files = ("--input", rows, "--output", out, "--format", "jsonl", "-m", bundle)
    return (*files, *columns, *FLAGS, "--address", cluster.address, *more)


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def test_50000_rows_while_an_actor_and_then_a_node_are_killed(
    fresh: Any, bundle: Path, translator: Translator, short: list[str], tmp_path: Path
) -> None:
    rows = make_rows(short, MANY)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    node, _ = (fresh.add_node(num_cpus=1) for _ in range(2))
    fresh.wait_for_nodes()
    job = start(*argv(path, out, bundle, fresh, "--shard-rows", 500))
    wait_for(lambda: finished(out) >= 10 or job.poll() is not None)
    before = workers()
    assert len(before) == 2
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(workers() - {victim}) == 2)  # Another has taken its place.
    then = finished(out)
    wait_for(lambda: finished(out) >= then + 10)
    fresh.remove_node(node, allow_graceful=False)
    then = finished(out)
    assert then < 90, "the node was to die in the middle"
    output, errors = job.communicate(timeout=1500)
    assert job.returncode == 0, errors
    check(rows, read_output(out), expected(translator, rows))
    assert output.startswith("{"), (output, errors)  # Ray has news; they are no part of it.
    summary = json.loads(output)
    assert summary["rows"] == MANY
    assert summary["errors"] == MANY - summary["sentences"] > 400
    # Finished shards were not lost with their node, and not run again.
    assert summary["shards"] == summary["shards_run"] == 100
    assert len({actor["node"] for actor in summary["actors"].values()}) == 2
    assert [p.name for p in out.rglob(".*")] == []


def test_the_driver_is_killed_and_resumed(
    fresh: Any, bundle: Path, translator: Translator, short: list[str], tmp_path: Path
) -> None:
    rows = make_rows(short, 3000)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    for _ in range(2):
        fresh.add_node(num_cpus=1)
    fresh.wait_for_nodes()
    arguments = argv(path, out, bundle, fresh, "--shard-rows", 100)
    job = start(*arguments)
    wait_for(lambda: finished(out) >= 6 or job.poll() is not None)
    job.kill()
    job.communicate()
    wait_for(lambda: not workers())  # Ray ends the workers of a driver that is gone.
    kept = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert 6 <= len(kept) < 30
    done = run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    check(rows, read_output(out), expected(translator, rows))
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert json.loads(done.stdout)["shards_run"] == 30 - len(kept)


def resident(pid: int) -> int:
    """The most memory that a process had, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0
    )


def peak(arguments: tuple[Any, ...]) -> dict[str, int]:
    """Runs a job; returns the most bytes of memory of its driver and of a worker."""
    job = start(*arguments)
    most = {"driver": 0, "worker": 0}
    while job.poll() is None:
        most["driver"] = max(most["driver"], resident(job.pid))
        most["worker"] = max(most["worker"], *map(resident, workers()), 0)
        time.sleep(0.1)
    assert job.returncode == 0, job.communicate()[1]
    return most


def test_memory_is_flat_at_ten_times_the_input(
    fresh: Any, bundle: Path, short: list[str], tmp_path: Path
) -> None:
    for _ in range(2):
        fresh.add_node(num_cpus=1)
    fresh.wait_for_nodes()
    # Long columns that are only kept: what is read and written grows, and the work does not.
    found = {}
    for count in (1000, 10_000):
        rows = [{**row, "kept": "x" * 10_000} for row in make_rows(short, count)]
        path = write_jsonl(tmp_path / f"{count}.jsonl", rows)
        out = tmp_path / f"out-{count}"
        found[count] = peak(argv(path, out, bundle, fresh, "--shard-rows", 250))
        assert sum(part.stat().st_size for part in out.glob("part-*")) > count * 10_000
    for who, least in found[1000].items():
        # 90 MB more of input; a fifth is what allocators may keep.
        assert found[10_000][who] < least * 1.2, found


def faulty(cluster: Any, **faults: str) -> Any:
    """Adds a node whose workers have faults: see faults/sitecustomize.py."""
    paths = [str(HERE / "faults"), os.environ["PYTHONPATH"]]
    return cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join(paths), **faults})


def test_a_full_disk_on_one_node(
    fresh: Any, bundle: Path, translator: Translator, short: list[str], tmp_path: Path
) -> None:
    rows = make_rows(short, 600)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    healthy = fresh.add_node(num_cpus=1)
    fresh.wait_for_nodes()
    broken = faulty(fresh, FAULT_DISK_FULL="part-00000-000004")
    fresh.wait_for_nodes()
    arguments = argv(path, out, bundle, fresh, "--shard-rows", 50)
    done = run(*arguments)
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert f"{broken.node_id[:8]}): OSError: [Errno 28] No space left on device" in error
    assert healthy.node_id[:8] not in error
    kept = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    assert kept
    assert [p.name for p in out.rglob(".*")] == []
    fresh.remove_node(broken)
    again = run(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    check(rows, read_output(out), expected(translator, rows))
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
