"""What a cluster does to a job: workers, nodes and drivers die.

The 50,000 rows take minutes; what each test breaks, it breaks in the middle of the work.
"""

from __future__ import annotations

import json
import os
import signal
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

pytestmark = pytest.mark.long
MANY = 50_000


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
