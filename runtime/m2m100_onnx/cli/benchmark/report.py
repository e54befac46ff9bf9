"""What was measured as JSON, CSV, Markdown or aligned text.

`document` is the one place where results become numbers to read. The other forms are made from it,
so a JSON file that was kept can be shown again. Knows no clocks, no models and no plots.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from m2m100_onnx.cli.benchmark.measure import Result, summarize
from m2m100_onnx.cli.benchmark.plan import Grid

__all__ = [
    "FORMATS",
    "as_json",
    "differing",
    "document",
    "milliseconds",
    "notes",
    "setting",
    "significant",
    "table",
]

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
    ("load s", lambda row: significant(row["load_seconds"]["p50"])),
    ("first ms", lambda row: milliseconds(row["first_token_seconds"]["p50"])),
    ("p50 ms", lambda row: milliseconds(row["latency_seconds"]["p50"])),
    ("p90 ms", lambda row: milliseconds(row["latency_seconds"]["p90"])),
    ("p99 ms", lambda row: milliseconds(row["latency_seconds"]["p99"])),
    ("mean ± sd ms", lambda row: _mean(row["latency_seconds"])),
    ("tokens/s", lambda row: significant(row["tokens_per_second"])),
    ("sent./s", lambda row: significant(row["sentences_per_second"])),
    ("private MiB", lambda row: _mebibytes(row["memory"]["private"])),
    ("shared MiB", lambda row: _mebibytes(row["memory"]["shared"])),
    ("peak MiB", lambda row: _mebibytes(row["memory"]["peak"])),
)


def document(
    environment: dict[str, Any], grid: Grid, results: Sequence[Result], *, complete: bool
) -> dict[str, Any]:
    """Returns everything that was measured, ready for JSON: seconds, bytes, and raw samples.

    Args:
        environment: what `measure.environment` returned at the start.
        grid: the plan.
        results: the results so far.
        complete: whether they are all; False after an interruption or a failure.
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
    """A Markdown table, with what was measured where below it."""
    heading, rows, common = table(found)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    body = "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)
    return f"{common}\n\n{body}\n" + "".join(f"- {note}\n" for note in notes(found))


def as_table(found: dict[str, Any]) -> str:
    """Aligned text; above it, once, the settings that all rows have in common."""
    heading, rows, common = table(found)
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
    return "\n".join([common, "", *(line.rstrip() for line in lines), "", *notes(found)]) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "table": as_table,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Returns heading, cells, and the settings that are the same in every row."""
    rows = found["results"]
    columns = differing(rows)
    heading = [*(title for _, title in columns), *(title for title, _ in _MEASURED)]
    cells = [
        [*(setting(name, row[name]) for name, _ in columns), *(show(row) for _, show in _MEASURED)]
        for row in rows
    ]
    common = ", ".join(
        f"{title.rstrip('.')} {setting(name, rows[0][name])}"
        for name, title in _CONFIGURATION
        if (name, title) not in columns
    )
    return heading, cells, common


def differing(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns key and title of the bundle, and of each setting that differs between rows."""
    return [
        (name, title)
        for name, title in _CONFIGURATION
        if name == "bundle" or len({row[name] for row in rows}) > 1
    ]


def setting(name: str, value: Any) -> str:
    """Returns a setting's value as a cell."""
    if name == "weights_size":
        return f"{value / 1e6:,.1f}"
    if value is None:
        return "default" if name == "threads" else "text"
    return str(value)


def notes(found: dict[str, Any]) -> Iterator[str]:
    """Yields what the numbers mean and where they were taken, in lines."""
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


def significant(value: float) -> str:
    """Returns a number with three significant digits and no exponent."""
    places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{places}f}"


def milliseconds(seconds: float) -> str:
    """Returns seconds as milliseconds, with three significant digits."""
    return significant(seconds * 1000)


def _mean(summary: dict[str, Any]) -> str:
    spread = summary["stddev"]
    mean = milliseconds(summary["mean"])
    return mean if spread is None else f"{mean} ± {milliseconds(spread)}"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.0f}"
