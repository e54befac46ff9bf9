"""Jobs on a cluster of this machine beside `m2m100 translate`: the same sentences, by turns.

    python benchmarks/jobs.py BUNDLE WORK [--sentences 600] [--beams 1,5] [--repetitions 3]

The cluster has two nodes of one CPU each and a head without any, all on this machine. In each
repetition take turns: `translate` with two threads, a job of two actors, and a job of one. A job's
time is counted from the beginning of its first shard to the end of its last, which leaves out the
seconds in which actors start; that of the whole command stands beside it. Ratios are medians of
pairs that were taken side by side. Samples go to results/jobs.json. Needs the extra `ray`; run it
on an idle machine, with the shape of m2m100_418M in int8.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "jobs.json"
LANGUAGES = ("--source-lang", "en", "--target-lang", "de")


def command(name: Sequence[str], arguments: argparse.Namespace, beam: int, *more: Any) -> list[str]:
    """Returns a command line; `more` are its files and its place."""
    search = ("--beam-size", beam, "--max-length", arguments.max_length)
    argv = [*name, "--model", arguments.bundle, *LANGUAGES, *search, *more]
    return [sys.executable, "-m", "m2m100_onnx", *map(str, argv)]


def timed(argv: list[str], work: Path) -> tuple[float, str]:
    """Runs a command; returns its seconds and what it printed."""
    cache = {"M2M100_ONNX_CACHE": str(work / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.perf_counter()
    done = subprocess.run(
        argv, env={**os.environ, **cache}, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return time.perf_counter() - began, done.stdout


def translate(arguments: argparse.Namespace, beam: int) -> dict[str, Any]:
    """Translates with one process and two threads."""
    work = arguments.work
    files = ("--input", work / "in.txt", "--output", work / "out.txt", "--threads", 2)
    seconds, _ = timed(command(["translate"], arguments, beam, *files), work)
    return {"command": seconds, "work": seconds}


def job(arguments: argparse.Namespace, beam: int, address: str, actors: int) -> dict[str, Any]:
    """Translates with actors of one CPU each."""
    work = arguments.work
    shutil.rmtree(work / "out", ignore_errors=True)
    files = ("--input", work / "in.jsonl", "--output", work / "out", "--format", "jsonl")
    place = ("--address", address, "--actors", actors, "--shard-rows", arguments.shard_rows)
    seconds, printed = timed(command(["jobs", "translate"], arguments, beam, *files, *place), work)
    summary = json.loads(printed)
    assert summary["sentences"] == arguments.sentences, summary
    return {"command": seconds, "work": summary["span_seconds"], "skew": summary["skew"]}


def same(work: Path) -> bool:
    """Says whether the job's output is that of `translate`."""
    parts = sorted((work / "out").glob("part-*"))
    rows = [json.loads(line) for part in parts for line in part.read_text("utf-8").splitlines()]
    return [row["translation"] for row in rows] == (work / "out.txt").read_text("utf-8").split(
        "\n"
    )[:-1]


def measure(arguments: argparse.Namespace, address: str) -> list[dict[str, Any]]:
    """Takes all samples, engines by turns."""
    engines = {
        "translate, 2 threads": lambda beam: translate(arguments, beam),
        "job, 2 actors": lambda beam: job(arguments, beam, address, 2),
        "job, 1 actor": lambda beam: job(arguments, beam, address, 1),
    }
    rows = []
    for repetition in range(arguments.repetitions):
        for beam in map(int, arguments.beams.split(",")):
            names = [*engines]
            for name in names[repetition % 3 :] + names[: repetition % 3]:
                sample = engines[name](beam)
                rows.append({"engine": name, "beam_size": beam, "pair": repetition, **sample})
                print(json.dumps(rows[-1]), file=sys.stderr)
            assert same(arguments.work), "a job's translations are not those of `translate`"
    return rows


def table(rows: list[dict[str, Any]], sentences: int) -> str:
    """Returns the table of the README."""
    lines = [
        "|  | beam | sentences a second | whole command | of translate's throughput |",
        "| --- | --- | --- | --- | --- |",
    ]
    for beam in sorted({row["beam_size"] for row in rows}):
        mine = [row for row in rows if row["beam_size"] == beam]
        base = {row["pair"]: row["work"] for row in mine if row["engine"].startswith("translate")}
        for engine in dict.fromkeys(row["engine"] for row in mine):
            samples = [row for row in mine if row["engine"] == engine]
            rate = statistics.median(sentences / row["work"] for row in samples)
            whole = statistics.median(row["command"] for row in samples)
            ratio = statistics.median(base[row["pair"]] / row["work"] for row in samples)
            lines.append(f"| {engine} | {beam} | {rate:.2f} | {whole:.0f} s | {ratio:.2f} x |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--beams", default="1,5")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    arguments.bundle, work = arguments.bundle.resolve(), arguments.work.resolve()
    arguments.work = work
    work.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "demo" / "heldout" / "test.en").read_text("utf-8").splitlines()
    texts = [lines[n % len(lines)] for n in range(arguments.sentences)]
    (work / "in.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    objects = (json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    (work / "in.jsonl").write_text("".join(objects), "utf-8")
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", M2M100_ONNX_CACHE=str(work / "cache"))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        timed(command(["translate"], arguments, 1, "--threads", 1, "Warm the cache."), work)
        rows = measure(arguments, cluster.address)
    finally:
        cluster.shutdown()
    facts = {
        "sentences": arguments.sentences,
        "date": str(date.today()),
        "machine": platform.machine(),
    }
    RESULTS.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", "utf-8")
    print(table(rows, arguments.sentences))


if __name__ == "__main__":
    main()
