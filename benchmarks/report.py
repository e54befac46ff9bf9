"""Writes the tables of benchmarks/README.md and README.md, and the plots, from results/*.json.

    python benchmarks/report.py [--check] [--print] [--results FOLDER]

--check fails if a table or a plot is not of these results; --print fills no README but prints
the tables. A part that was not measured is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_report import conditions as compared_conditions
from compare_report import parts as compared_parts
from plots import drawn_from, line_chart
from targets import PEER, Data, bandwidth_share, cell_of, slowdown, speed_ratio, targets

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NAMES = (
    *("compare", "speed", "speed_fp32", "load", "memory", "workers", "busy", "bandwidth", "curves"),
    *("export", "quality"),
)
# The label of each curve's axis.
CURVES = {
    "batch": "sentences in a batch",
    "source": "source tokens",
    "target": "target tokens",
    "threads": "threads",
}
MIB = 2**20
# The engines in the project's README; the others are here alone.
COMPARED = ("ours int8", "ours int4", "ctranslate2 int8", "transformers fp32")

Results = dict[str, Data | None]


def read(folder: Path) -> Results:
    """Returns every result file, None where one is missing; both halves of the speed are one."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    found = {n: json.loads(p.read_text()) if p.exists() else None for n, p in paths.items()}
    larger = found.pop("speed_fp32")
    if found["speed"] and larger:
        found["speed"]["rows"] += larger["rows"]
    else:
        found["speed"] = found["speed"] or larger
    return found


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join(["---"] * len(header)) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def conditions(data: Data) -> str:
    """Returns where and with which versions a result was measured."""
    machine = data["machine"]
    # Both environments have torch and transformers. Where peers were measured, theirs count.
    peers = data["versions"].get("peers", {})
    packages = {**peers, **data["versions"]["ours"]}
    packages.update({name: peers[name] for name in ("torch", "transformers") if name in peers})
    listed = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['date']}; load "
        f"{machine['load_average_of_run']:.1f} when the run began, {machine['load_average']:.1f} "
        f"when this part of it did; {listed}."
    )


def middle(samples: list[float], digits: int = 2) -> str:
    """Returns the median (least to most) in seconds."""
    spread = f"{min(samples):.{digits}f}-{max(samples):.{digits}f}"
    return f"{statistics.median(samples):.{digits}f} s ({spread})"


def target_table(results: Results) -> Iterator[str]:
    """Yields the targets, and whether they are reached."""
    found = list(targets(results))
    yield "### Targets"
    yield ""
    yield from table(["418M shape", "target", "measured", ""], [target.cells() for target in found])


def export_table(data: Data) -> Iterator[str]:
    """Yields the cost of exports."""
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


def memory_table(data: Data) -> Iterator[str]:
    """Yields the memory of each engine, and the time to open its model."""
    yield "### Memory of the 418M shape after one beam-5 translation, and time to open the model"
    yield ""
    kinds = ("private", "mapped", "resident", "peak")
    rows = [
        [
            row["engine"],
            f"{row['load']:.1f} s",
            *(f"{row['used'][kind] / MIB:,.0f}" for kind in kinds),
        ]
        for row in data["rows"]
    ]
    yield from table(["MiB", "open", "private", "mapped", "resident", "peak resident"], rows)


def load_table(data: Data) -> Iterator[str]:
    """Yields the time of fresh processes to their first token."""
    yield "### From the start of a process to its first token"
    yield ""
    yield (
        "Imports, opening the model, the encoder and one step, with the files in the page cache. "
        "Median (least to most)."
    )
    yield ""
    yield from table(["", "time"], [[r["engine"], middle(r["samples"])] for r in data["rows"]])


def workers_table(data: Data) -> Iterator[str]:
    """Yields the memory of processes side by side."""
    yield "### Memory of processes that translate the same at once"
    yield ""
    rows = []
    one = {row["engine"]: row for row in data["rows"] if row["processes"] == 1}
    for row in data["rows"]:
        total, forked = row["proportional"], row.get("forked", False)
        processes = f"{row['processes']} forked" if forked else str(row["processes"])
        # Forked processes have anonymous memory in common, so its sum means nothing.
        private = "" if forked else f"{row['private'] / MIB:,.0f}"
        ratio = f"{total / one[row['engine']]['proportional']:.2f} x"
        rows.append([row["engine"], processes, f"{total / MIB:,.0f}", private, ratio])
    header = ["MiB", "processes", "together (PSS)", "of it private", "against one"]
    yield from table(header, rows)
    if any(row.get("forked") for row in data["rows"]):
        yield ""
        yield (
            "Forked: by a process that has imported the runtime and read the vocabulary, and is "
            "counted as well."
        )


def column(cell: tuple[int, int, int, int]) -> str:
    """Returns the heading of a cell."""
    batch_size, beam_size, source, target = cell
    lengths = "" if (source, target) == (32, 48) else f", {source} to {target}"
    return f"B={batch_size} beam {beam_size}{lengths}"


def by_cell(data: Data) -> tuple[list[str], list[tuple[int, int, int, int]], dict[Any, Any]]:
    """Returns the engines, the cells, and the samples of each pair of them."""
    samples = {(row["engine"], cell_of(row)): row["samples"] for row in data["rows"]}
    engines = list(dict.fromkeys(engine for engine, _ in samples))
    return engines, list(dict.fromkeys(cell for _, cell in samples)), samples


def speed_table(data: Data) -> Iterator[str]:
    """Yields the seconds a batch, and the ratios to one engine."""
    engines, cells, samples = by_cell(data)
    base = PEER if PEER in engines else engines[0]
    yield "### Speed of the 418M shape"
    yield ""
    yield (
        "32 source tokens and exactly 48 target tokens, unless the heading says others. Median "
        f"seconds a batch (least to most), and how many times as fast as {base}. Optimum runs the "
        "portable graphs of our bundles. Engines in fp32 took turns in a run of their own: "
        "their ratios to others are not of pairs."
    )
    yield ""
    rows = []
    for engine in engines:
        row = [engine]
        for cell in cells:
            own, other = samples.get((engine, cell)), samples.get((base, cell))
            ratio = f", {speed_ratio(own, other):.2f} x" if own and other else ""
            row.append(f"{middle(own)}{ratio}" if own else "")
        rows.append(row)
    yield from table(["", *map(column, cells)], rows)


def busy_table(data: Data) -> Iterator[str]:
    """Yields the time beside a busy neighbour."""
    yield "### Beside a foreign process that keeps one core busy, one sentence"
    yield ""
    rows = [
        [
            row["engine"],
            str(row["beam_size"]),
            middle(row["quiet"]),
            middle(row["busy"]),
            f"{slowdown(row):.2f} x",
        ]
        for row in data["rows"]
    ]
    yield from table(["", "beam", "alone", "beside it", "slower by"], rows)


def bandwidth_table(data: Data) -> Iterator[str]:
    """Yields the time of a step, and the time to read its weights."""
    rates = data["rows"][0]["bandwidth"]
    yield "### A greedy step of one sentence, and the memory's bandwidth"
    yield ""
    yield (
        f"Two threads that only read reach {max(rates) / 1e9:.1f} GB/s at best here (median "
        f"{statistics.median(rates) / 1e9:.1f}). The share is the time the weights of a step take "
        "at the best rate, over the time of a step; CTranslate2 is counted the bytes of ours int8."
    )
    yield ""
    rows = [
        [
            row["engine"],
            f"{row['bytes'] / 1e6:,.0f} MB",
            f"{statistics.median(row['steps']) * 1e3:.1f} ms",
            f"{bandwidth_share(row) * 100:.0f} %",
        ]
        for row in data["rows"]
    ]
    yield from table(["", "weights a step", "step", "share"], rows)


def curves_part(data: Data) -> Iterator[str]:
    """Yields the plots, and the points that were skipped."""
    yield "### How speed grows with one size at a time"
    yield ""
    yield "Greedy, one sentence of 32 to 48 tokens but for the size that varies."
    yield ""
    for name in dict.fromkeys(row["curve"] for row in data["rows"]):
        yield f"![tokens a second by {CURVES[name]}](results/curve-{name}.svg)"
    skipped = [row for row in data["rows"] if "skipped" in row]
    if skipped:
        yield ""
        yield "Skipped, since a call would take long: " + "; ".join(
            f"{r['engine']} at {r['size']} {CURVES[r['curve']]} (about {r['skipped']:.0f} s)"
            for r in skipped
        )


def plots(data: Data | None) -> dict[str, str]:
    """Returns each plot's file name and its SVG."""
    rows = [row for row in data["rows"] if "samples" in row] if data else []
    found = {}
    for name in dict.fromkeys(row["curve"] for row in rows):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["curve"] == name:
                tokens = row["batch_size"] * row["target_length"]
                rate = tokens / statistics.median(row["samples"])
                series.setdefault(row["engine"], []).append((row["size"], rate))
        title = f"Speed by {CURVES[name]}, greedy"
        found[f"curve-{name}.svg"] = line_chart(title, CURVES[name], "tokens a second", series)
    return found


def quality_table(data: Data) -> Iterator[str]:
    """Yields the loss of quality of each precision."""
    settings = data["settings"]
    yield "### Quality of the demo model, all directions"
    yield ""
    yield (
        f"{settings['lines']} lines a direction, beam {settings['beam_size']}; chrF lost is "
        "against ours fp32, and identical is the share of translations that stay the same."
    )
    yield ""
    rows = [
        [
            row["engine"],
            f"{row['chrf']:.2f}",
            f"{row['lost']:.2f}",
            f"{row['most_lost']:.2f}",
            f"{row['identical'] * 100:.1f} %",
            f"{row['bytes'] / 1e6:,.1f} MB",
        ]
        for row in data["summary"]
    ]
    header = ["", "chrF", "lost", "most lost in a direction", "identical", "weights"]
    yield from table(header, rows)


PARTS = {
    "speed": speed_table,
    "load": load_table,
    "memory": memory_table,
    "workers": workers_table,
    "busy": busy_table,
    "bandwidth": bandwidth_table,
    "curves": curves_part,
    "quality": quality_table,
    "export": export_table,
}


def compared(data: Data) -> Iterator[str]:
    """Yields the comparison with peers at their best settings."""
    for title, text, rows in compared_parts(data):
        yield from (f"### {title}", "")
        if text:
            yield from (text, "")
        yield from table(*rows[:1], rows[1:])
        yield ""
    yield from (compared_conditions(data), "")


def tables(results: Results) -> list[str]:
    """Returns all tables, the comparison and the targets first."""
    data = results["compare"]
    lines = list(compared(data)) if data and data["rows"] else []
    lines += target_table(results)
    for name, part in PARTS.items():
        data = results[name]
        if data and data["rows"]:
            lines += ["", *part(data), "", conditions(data)]
    return lines


def comparison(results: Results) -> list[str]:
    """Returns the short table of the project's README; nothing without speed and memory."""
    speed, memory = results["speed"], results["memory"]
    if not speed or not memory:
        return []
    engines, cells, samples = by_cell(speed)
    used = {row["engine"]: row for row in memory["rows"]}
    rows = []
    for engine in filter(COMPARED.__contains__, engines):
        times = [samples.get((engine, cell)) for cell in cells]
        row = [engine, *(f"{statistics.median(t):.2f} s" if t else "" for t in times)]
        if engine in used:
            private = used[engine]["used"]["private"]
            row += [f"{used[engine]['load']:.1f} s", f"{private / MIB:,.0f} MiB"]
        rows.append(row + [""] * (len(cells) + 3 - len(row)))
    return list(table(["", *map(column, cells), "load", "private memory"], rows))


def filled(path: Path, name: str, lines: list[str]) -> str:
    """Returns a file's text with its marked part replaced."""
    head, rest = path.read_text(encoding="utf-8").split(f"<!-- {name}:begin -->\n")
    _, tail = rest.split(f"<!-- {name}:end -->")
    body = "\n".join(lines)
    return f"{head}<!-- {name}:begin -->\n{body}\n<!-- {name}:end -->{tail}"


def same(path: Path, text: str) -> bool:
    """Returns whether a file has a text, or is a chart of the same numbers."""
    if not path.exists():
        return False
    found = path.read_text(encoding="utf-8")
    return drawn_from(found) == drawn_from(text) if path.suffix == ".svg" else found == text


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", action="store_true", dest="to_stdout")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = read(arguments.results)
    files = {arguments.results / name: svg for name, svg in plots(results["curves"]).items()}
    short = comparison(results)
    if arguments.to_stdout:
        print("\n".join([*tables(results), "", *short]))
    else:
        files[HERE / "README.md"] = filled(HERE / "README.md", "tables", tables(results))
        if short:
            path = HERE.parent / "README.md"
            files[path] = filled(path, "comparison", short)
    for path, text in files.items():
        if arguments.check and not same(path, text):
            sys.exit(f"{path.name} is not what results/*.json say; run report.py")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
