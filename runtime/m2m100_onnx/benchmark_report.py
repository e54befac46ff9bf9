"""What was measured as JSON, CSV, Markdown, a terminal's table, or an HTML page with plots.

`document` is the one place where results become numbers to read; the other forms are made from it,
so a JSON file that was kept can be shown again. Knows no clocks and no models.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from m2m100_onnx.benchmark import Result, summarize
from m2m100_onnx.benchmark_plan import Grid

__all__ = ["FORMATS", "as_html", "document"]

FORMAT_VERSION = 1
MIB = 2**20

# Key in a row of the document, and heading.
_CONFIGURATION: tuple[tuple[str, str], ...] = (
    ("bundle", "bundle"),
    ("precision", "precision"),
    ("weights_size", "weights MB"),
    ("batch_size", "batch"),
    ("beam_size", "beam"),
    ("source_length", "source"),
    ("target_length", "target"),
    ("threads", "threads"),
    ("concurrency", "conc."),
    ("source_lang", "from"),
    ("target_lang", "into"),
)
# Heading, and the cell of a row.
_MEASURED: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("load s", lambda row: _significant(row["load_seconds"]["p50"])),
    ("first ms", lambda row: _milliseconds(row["first_token_seconds"]["p50"])),
    ("p50 ms", lambda row: _milliseconds(row["latency_seconds"]["p50"])),
    ("p90 ms", lambda row: _milliseconds(row["latency_seconds"]["p90"])),
    ("p99 ms", lambda row: _milliseconds(row["latency_seconds"]["p99"])),
    ("mean ± sd ms", lambda row: _mean(row["latency_seconds"])),
    ("tokens/s", lambda row: _significant(row["tokens_per_second"])),
    ("sent./s", lambda row: _significant(row["sentences_per_second"])),
    ("private MiB", lambda row: _mebibytes(row["memory"]["private"])),
    ("shared MiB", lambda row: _mebibytes(row["memory"]["shared"])),
    ("peak MiB", lambda row: _mebibytes(row["memory"]["peak"])),
)


def document(
    environment: dict[str, Any], grid: Grid, results: Sequence[Result], *, complete: bool
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON: seconds, bytes, and raw samples.

    Args:
        environment: as `benchmark.environment` returned it at the start.
        grid: what was asked for.
        results: what was measured of it.
        complete: whether that is all; not so after an interruption or a failure.
    """
    return {
        "format_version": FORMAT_VERSION,
        **environment,
        "settings": {
            "warmup": grid.warmup,
            "repetitions": grid.repetitions,
            "loads": grid.loads,
            "device": grid.device,
            "session_options": dict(grid.session_options),
            "text_lines": None if grid.text is None else len(grid.text),
        },
        "complete": complete,
        "results": [_row(result) for result in results],
    }


def _row(result: Result) -> dict[str, Any]:
    samples = {
        name: list(getattr(result, name))
        for name in ("load_seconds", "first_token_seconds", "latency_seconds")
    }
    return {
        **asdict(result.configuration),
        **{name: asdict(summarize(values)) for name, values in samples.items()},
        "tokens_per_second": result.generated_tokens / result.wall_seconds,
        "sentences_per_second": result.sentences / result.wall_seconds,
        "generated_tokens": result.generated_tokens,
        "sentences": result.sentences,
        "wall_seconds": result.wall_seconds,
        "memory": dict(result.memory),
        "samples": samples,
    }


def as_json(found: dict[str, Any]) -> str:
    """The document."""
    return json.dumps(found, indent=1) + "\n"


def as_csv(found: dict[str, Any]) -> str:
    """A line a configuration: every number but the raw samples, nested names joined by `_`."""
    about = {
        **{name: found[name] for name in ("date", "processor", "cores", "load_average")},
        **{f"version_{name}": version for name, version in found["versions"].items()},
    }
    lines = [
        {**_flat({k: v for k, v in row.items() if k != "samples"}), **about}
        for row in found["results"]
    ]
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return output.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat.update({name: value} if inner is None else {f"{name}_{k}": inner[k] for k in inner})
    return flat


def as_markdown(found: dict[str, Any]) -> str:
    """A Markdown table with what was measured where below it."""
    heading, rows, common = _table(found)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    table = "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)
    return f"{common}\n\n{table}\n" + "".join(f"- {note}\n" for note in _notes(found))


def as_table(found: dict[str, Any]) -> str:
    """A table for a terminal; what all rows have in common is said once, above it."""
    heading, rows, common = _table(found)
    # A unit stands below its heading, since terminals are narrow.
    pairs = [title.rpartition(" ")[::2] for title in heading]
    heads = [[name or unit for name, unit in pairs], [unit if name else "" for name, unit in pairs]]
    widths = [max(map(len, column)) for column in zip(*heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in (*heads, ["-" * width for width in widths], *rows)
    ]
    return "\n".join([common, "", *(line.rstrip() for line in lines), "", *_notes(found)]) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": as_table,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Heading, cells, and the settings that do not differ between rows."""
    rows = found["results"]
    differing = [
        (name, title)
        for name, title in _CONFIGURATION
        if name == "bundle" or len({row[name] for row in rows}) > 1
    ]
    heading = [*(title for _, title in differing), *(title for title, _ in _MEASURED)]
    cells = [
        [
            *(_setting(name, row[name]) for name, _ in differing),
            *(show(row) for _, show in _MEASURED),
        ]
        for row in rows
    ]
    common = ", ".join(
        f"{title.rstrip('.')} {_setting(name, rows[0][name])}"
        for name, title in _CONFIGURATION
        if (name, title) not in differing
    )
    return heading, cells, common


def _setting(name: str, value: Any) -> str:
    if name == "weights_size":
        return f"{value / 1e6:,.1f}"
    if value is None:
        return "default" if name == "threads" else "text"
    return str(value)


def _notes(found: dict[str, Any]) -> Iterator[str]:
    """What the numbers mean and where they were taken, in lines."""
    count = min(row["latency_seconds"]["count"] for row in found["results"])
    few = ": nearly the slowest" if count < 100 else ""
    yield f"p50 to mean: a whole call of one batch, text in, text out; p99 of {count} timed{few}"
    loads = found["settings"]["loads"]
    yield f"load: start of a fresh process to its first token, median of {loads}"
    yield "first: median of calls that end after one token"
    yield "tokens: generated for the best hypotheses; start and language token are not counted"
    yield "private: memory no process can share; shared: pages of files; peak: most ever resident"
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    load = found["load_average"]
    yield (
        f"{found['processor']}, {found['cores']} cores, "
        f"load average {'unknown' if load is None else format(load, '.2f')} at the start, "
        f"{found['date']}; {found['settings']['device']}; {versions}"
    )
    if not found["complete"]:
        yield "incomplete: interrupted or failed before all was measured"


def _significant(value: float) -> str:
    """Three digits that count, and no exponent."""
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{places}f}"


def _milliseconds(seconds: float) -> str:
    return _significant(seconds * 1000)


def _mean(summary: dict[str, Any]) -> str:
    spread = summary["stddev"]
    mean = _milliseconds(summary["mean"])
    return mean if spread is None else f"{mean} ± {_milliseconds(spread)}"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.0f}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d5dae1;
  --c0: #2f6fb3; --c1: #c8642a; --c2: #3b8750; --c3: #8a56a8; --c4: #a8862b; --c5: #4a8f98; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --paper: #15181c; --faint: #3a414a;
  --c0: #6aa5e3; --c1: #ea9462; --c2: #74c08a; --c3: #bf92db; --c4: #d9b95f; --c5: #82c4cd; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 0.3rem; }
.wide { overflow-x: auto; } svg { width: 100%; min-width: 40rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; } line { stroke: var(--ink); }
.grid { stroke: var(--faint); } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid var(--faint);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
"""
_LABEL, _PLOT, _VALUE, _ROW = 330, 470, 160, 24


def as_html(found: dict[str, Any]) -> str:
    """A page that needs nothing but itself: a plot a measure, a bar a configuration, the table."""
    heading, cells, common = _table(found)
    labels = _labels(found["results"])
    bundles = list(dict.fromkeys(row["bundle"] for row in found["results"]))
    colours = [f"var(--c{bundles.index(row['bundle']) % 6})" for row in found["results"]]
    plots = "".join(
        f'<h2>{escape(title)}</h2>\n<div class="wide">{_plot(labels, colours, bars)}</div>\n'
        for title, bars in _measures(found["results"])
    )
    table = "".join(
        f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>\n"
        for tag, row in [("th", heading), *(("td", row) for row in cells)]
    )
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in _notes(found))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>m2m100 benchmark</title>\n<style>{_STYLE}</style></head>\n<body>"
        f"<h1>m2m100 benchmark</h1>\n<p>{escape(common)}</p>\n{plots}"
        f'<h2>All numbers</h2>\n<div class="wide"><table>{table}</table></div>\n'
        f"<ul>{notes}</ul></body></html>\n"
    )


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    differing = [
        (name, title)
        for name, title in _CONFIGURATION
        if name not in ("bundle", "precision", "weights_size")
        and len({row[name] for row in rows}) > 1
    ]
    return [
        ", ".join(
            [
                f"{row['bundle']} ({row['precision']})",
                *(f"{title} {_setting(name, row[name])}" for name, title in differing),
            ]
        )
        for row in rows
    ]


def _measures(
    rows: list[dict[str, Any]],
) -> Iterator[tuple[str, list[tuple[float, float, str] | None]]]:
    """Each plot's title, and a bar a row: its length, the end of its whisker, and what it says."""

    def seconds(name: str) -> list[tuple[float, float, str] | None]:
        return [
            (row[name]["p50"], row[name]["p99"], f"{_milliseconds(row[name]['p50'])} ms")
            for row in rows
        ]

    def plain(values: list[float | None], show: Callable[[float], str]) -> list[Any]:
        return [None if value is None else (value, value, show(value)) for value in values]

    def size(value: float) -> str:
        return f"{value / MIB:,.0f} MiB"

    yield "Latency of a call: median, line to p99 (less is better)", seconds("latency_seconds")
    speed = [row["tokens_per_second"] for row in rows]
    yield "Generated tokens a second (more is better)", plain(speed, _significant)
    yield "Time to first token: median, line to p99", seconds("first_token_seconds")
    yield "Load, fresh process to first token: median, line to p99", seconds("load_seconds")
    for name in ("private", "shared", "peak"):
        sizes = [row["memory"][name] for row in rows]
        if any(value is not None for value in sizes):
            yield f"Memory, {name}", plain(sizes, size)


def _plot(
    labels: list[str], colours: list[str], bars: list[tuple[float, float, str] | None]
) -> str:
    longest = max((bar[1] for bar in bars if bar), default=0) or 1
    height = _ROW * len(bars)
    width = _LABEL + _PLOT + _VALUE
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for index, (label, colour, bar) in enumerate(zip(labels, colours, bars, strict=True)):
        middle = index * _ROW + _ROW / 2
        short = label if len(label) <= 52 else label[:51] + "…"
        parts.append(
            f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(short)}'
            f"<title>{escape(label)}</title></text>"
        )
        length, end, says = bar or (0, 0, "not known here")
        right = _LABEL + _PLOT * length / longest
        tip = _LABEL + _PLOT * end / longest
        parts.append(
            f'<rect x="{_LABEL}" y="{middle - 8}" width="{right - _LABEL:.1f}" height="16" '
            f'fill="{colour}"><title>{escape(f"{label}: {says}")}</title></rect>'
            f'<line x1="{right:.1f}" x2="{tip:.1f}" y1="{middle}" y2="{middle}"/>'
            f'<text x="{tip + 6:.1f}" y="{middle + 4}">{escape(says)}</text>'
        )
    axis = f'<line class="grid" x1="{_LABEL}" x2="{_LABEL}" y1="0" y2="{height}"/>'
    return "".join([*parts, axis, "</svg>"])
