"""Writes the tables of benchmarks/README.md and README.md from results/*.json.

python benchmarks/report.py [--check]      --check fails if a table is not what the results say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 2**20


def load(name: str) -> dict[str, Any]:
    """One result file."""
    data: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return data


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join(["---"] * len(header)) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def conditions(data: dict[str, Any]) -> str:
    """Where and with what a result was taken."""
    machine = data["machine"]
    # Both environments have torch and transformers; where peers were measured, theirs count.
    peers = data["versions"].get("peers", {})
    packages = {**peers, **data["versions"]["ours"]}
    packages.update({name: peers[name] for name in ("torch", "transformers") if name in peers})
    listed = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    return (
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average']:.1f} at "
        f"the start, {machine['date']}; {listed}."
    )


def export_tables() -> Iterator[str]:
    """Export cost."""
    data = load("export")
    yield "### Export, without verification"
    yield ""
    rows = [
        [
            f"{row['shape']} {row['precision']}",
            f"{row['seconds']:.1f} s",
            f"{row['peak'] / MIB:,.0f} MiB",
            f"{row['peak'] / row['checkpoint']:.2f} x",
            f"{row['weights'] / 1e6:,.1f} MB",
            f"{row['bundle'] / 1e6:,.1f} MB",
        ]
        for row in data["rows"]
    ]
    header = ["", "time", "peak resident", "peak / checkpoint", "weights file", "bundle"]
    yield from table(header, rows)
    yield ""
    yield conditions(data)


def memory_tables() -> Iterator[str]:
    """Memory and load time."""
    data = load("memory")
    yield "### Memory of the 418M shape after one beam-5 translation, and load time"
    yield ""
    rows = [
        [
            row["engine"],
            f"{row['load']:.1f} s",
            f"{row['used']['private'] / MIB:,.0f}",
            f"{row['used']['mapped'] / MIB:,.0f}",
            f"{row['used']['resident'] / MIB:,.0f}",
            f"{row['used']['peak'] / MIB:,.0f}",
        ]
        for row in data["rows"]
    ]
    header = ["MiB", "load", "private", "mapped", "resident", "peak resident"]
    yield from table(header, rows)
    yield ""
    yield conditions(data)


def speed_tables() -> Iterator[str]:
    """Seconds a batch, and ratios to ours."""
    data = load("speed")
    settings = data["settings"]
    yield (
        f"### Speed of the 418M shape: {settings['source_length']} source tokens, exactly "
        f"{settings['target_tokens']} target tokens"
    )
    yield ""
    yield "Median seconds a batch (least to most), and how many times ours fp32 it takes."
    yield ""
    cells = list(dict.fromkeys((r["batch_size"], r["beam_size"]) for r in data["rows"]))
    found = {(r["engine"], r["batch_size"], r["beam_size"]): r for r in data["rows"]}
    rows = []
    for engine in dict.fromkeys(r["engine"] for r in data["rows"]):
        row = [engine]
        for cell in cells:
            seconds, ratio = (found[(engine, *cell)][k] for k in ("seconds", "ratio"))
            spread = f"{seconds['min']:.2f}-{seconds['max']:.2f}"
            row.append(f"{seconds['median']:.2f} s ({spread}), {ratio['median']:.2f} x")
        rows.append(row)
    yield from table(["", *(f"B={b} beam {k}" for b, k in cells)], rows)
    yield ""
    yield conditions(data)


def comparison() -> Iterator[str]:
    """The short table of the project's README."""
    speed = load("speed")
    memory = {row["engine"]: row for row in load("memory")["rows"]}
    cells = list(dict.fromkeys((r["batch_size"], r["beam_size"]) for r in speed["rows"]))
    found = {(r["engine"], r["batch_size"], r["beam_size"]): r for r in speed["rows"]}
    rows = []
    for engine in dict.fromkeys(r["engine"] for r in speed["rows"]):
        times = [f"{found[(engine, *cell)]['seconds']['median']:.2f} s" for cell in cells]
        used = memory[engine]
        private = f"{used['used']['private'] / MIB:,.0f} MiB"
        rows.append([engine, *times, f"{used['load']:.1f} s", private])
    header = ["", *(f"B={b} beam {k}" for b, k in cells), "load", "private memory"]
    yield from table(header, rows)


def fill(path: Path, name: str, lines: list[str]) -> tuple[str, str]:
    """A file's text before and after its marked part is replaced."""
    before = path.read_text(encoding="utf-8")
    head, rest = before.split(f"<!-- {name}:begin -->\n")
    _, tail = rest.split(f"<!-- {name}:end -->")
    body = "\n".join(lines)
    return before, f"{head}<!-- {name}:begin -->\n{body}\n<!-- {name}:end -->{tail}"


def main() -> None:
    """Fills both files."""
    parts = [list(part()) for part in (export_tables, memory_tables, speed_tables)]
    tables = [line for part in parts for line in ([*part, ""])][:-1]
    targets = (
        (HERE / "README.md", "tables", tables),
        (HERE.parent / "README.md", "comparison", list(comparison())),
    )
    for path, name, lines in targets:
        before, after = fill(path, name, lines)
        if "--check" in sys.argv[1:] and before != after:
            sys.exit(f"{path.name}: the {name} are not what results/*.json say; run report.py")
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
