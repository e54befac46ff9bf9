"""What the tests of jobs share: rows with bad ones, the command, what a job must give."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from background import usual
from m2m100_onnx import M2M100Error, Translator

GREEDY = {"beam_size": 1, "max_length": 24}
FLAGS = ("--beam-size", "1", "--max-length", "24")
# Rows that cannot be translated, and what their errors say.
BAD: tuple[tuple[Any, str], ...] = (
    (None, "expected a str, found NoneType"),
    (17, "expected a str, found int"),
    (["a", "list"], "expected a str, found list"),
    ("word " * 1000, "InputTooLongError"),
    ("broken \ud800 surrogate", "lone surrogate"),
)
BAD_CODES: tuple[tuple[Any, str], ...] = (("xx", "unknown language 'xx'"), (None, "None"))


def make_rows(sentences: Sequence[str], count: int, *, every: int = 97) -> list[dict[str, Any]]:
    """Rows with ids; each `every`-th is bad, and languages change from row to row."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        row: dict[str, Any] = {
            "id": f"row-{n}",
            "lang": "en",
            "text": sentences[n % len(sentences)],
        }
        if n % every == every - 1:
            kind = (n // every) % (len(BAD) + len(BAD_CODES))
            if kind < len(BAD):
                row["text"] = BAD[kind][0]
            else:
                row["lang"] = BAD_CODES[kind - len(BAD)][0]
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected(
    translator: Translator, rows: Sequence[dict[str, Any]], target: str = "de"
) -> list[Any]:
    """What one process gives for rows: a str, or the error of a row."""
    known: dict[str, Any] = {}
    for row in rows:
        key = json.dumps([row["text"], row["lang"]])
        if key not in known:
            known[key] = len(known)
    distinct = [json.loads(key) for key in known]
    found = translator.translate_batch(
        [text for text, _ in distinct],
        source_lang=[lang for _, lang in distinct],
        target_lang=target,
        on_error="return",
        **GREEDY,  # type: ignore[arg-type]
    )
    results = {
        key: each if isinstance(each, M2M100Error) else each.text
        for key, each in zip(known, found, strict=True)
    }
    return [results[json.dumps([row["text"], row["lang"]])] for row in rows]


def read_output(folder: Path, kind: str = "jsonl") -> list[dict[str, Any]]:
    """The rows of a finished job in the order of its shards."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"part-*.{kind}")):
        if kind == "jsonl":
            rows += map(json.loads, path.read_text(encoding="utf-8").splitlines())
        elif kind == "csv":
            rows += csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        else:
            rows += pq.read_table(path).to_pylist()
    return rows


def check(
    rows: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], wanted: list[Any]
) -> None:
    """Compares a job's output with one process: no row lost or doubled, none out of its place."""
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    wrong = []
    for row, out, want in zip(rows, found, wanted, strict=True):
        kept = {name: out[name] for name in row}
        if isinstance(want, M2M100Error):
            good = out["translation"] is None and out["translation_error"] == (
                f"{type(want).__name__}: {want.message}"
            )
        else:
            good = (out["translation"], out["translation_error"]) == (want, None)
        if kept != row or not good:
            wrong.append((row, out, want))
    assert wrong == []


def command(*argv: Any) -> list[str]:
    return [sys.executable, "-m", "m2m100_onnx", "jobs", "translate", *map(str, argv)]


def run(*argv: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=900,
        check=False,
    )


def wait_for(true: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


def finished(folder: Path) -> int:
    return len([*folder.glob("part-*")])


def workers(kind: str = "MapWorker(MapBatches(_Worker))") -> set[int]:
    """The processes of actors on this process's cluster, those that translate by default."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, encoding="utf-8", check=True
    )
    lines = [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]
    parents = {int(line[0]): int(line[1]) for line in lines}
    found = {int(line[0]) for line in lines if kind in line[-1]}
    # A worker is its raylet's child, and that is the child of whoever made the cluster.
    return {pid for pid in found if parents.get(parents[pid]) == os.getpid()}


def argv(rows: Path, out: Path, bundle: Any, cluster: Any, *more: Any) -> tuple[Any, ...]:
    columns = ("--source-lang-column", "lang", "--target-lang", "de")
    files = ("--input", rows, "--output", out, "--format", "jsonl", "-m", bundle)
    return (*files, *columns, *FLAGS, "--address", cluster.address, *more)


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=usual,
    )
