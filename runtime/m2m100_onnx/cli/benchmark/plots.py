"""What was measured as plots, drawn by matplotlib.

Knows the document that `report` makes, and no clocks. `benchmarks/` draws its curves in this style.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from m2m100_onnx.cli.benchmark.report import differing, milliseconds, setting, significant
from m2m100_onnx.errors import DependencyError, InvalidInputError

__all__ = ["COLOURS", "STYLE", "Bar", "bars", "check", "save"]

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # Text stays text, which a reader can search.
    "svg.hashsalt": "m2m100",  # The same numbers give the same file.
    "text.parse_math": False,  # A bundle's name may hold dollar signs.
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_FORMATS = (".svg", ".png", ".pdf")
_MIB = 2**20


class Bar(NamedTuple):
    """A configuration in one plot: its length, the end of its whisker, and its label.

    Numbers are in the label's unit.
    """

    length: float
    end: float
    label: str


def check(name: str) -> None:
    """Refuses a file that `save` could not write, before minutes of measuring.

    Raises:
        InvalidInputError: the name does not end like a format.
        DependencyError: matplotlib is not installed.
    """
    if Path(name).suffix.lower() not in _FORMATS:
        raise InvalidInputError(
            f"--plot: expected a name that ends in {', '.join(_FORMATS)}, found {name}"
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "--plot needs matplotlib; run `pip install 'm2m100-onnx[cli]'`"
        ) from error


def save(found: dict[str, Any], name: str, file: BinaryIO) -> None:
    """Writes a plot a measure, with a bar a configuration.

    Args:
        found: the document.
        name: a name that `check` accepts, whose end says the format.
        file: where to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = found["results"]
    plots = list(bars(rows))
    bundles = list(dict.fromkeys(row["bundle"] for row in rows))
    colours = [COLOURS[bundles.index(row["bundle"]) % len(COLOURS)] for row in rows]
    height = len(plots) * (0.8 + 0.3 * len(rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(10, height), layout="constrained")
        figure.suptitle("m2m100 benchmark")
        axes = figure.subplots(len(plots), squeeze=False)[:, 0]
        for axis, (title, drawn) in zip(axes, plots, strict=True):
            _draw(axis, title, _labels(rows), colours, drawn)
        figure.savefig(file, format=Path(name).suffix[1:].lower())


def _draw(
    axis: Any, title: str, labels: list[str], colours: list[str], drawn: list[Bar | None]
) -> None:
    known = [bar or Bar(0, 0, "not known here") for bar in drawn]
    whiskers = [[0.0] * len(known), [bar.end - bar.length for bar in known]]
    places = range(len(known))
    axis.set_title(title, loc="left")
    lengths = [bar.length for bar in known]
    shapes = axis.barh(places, lengths, color=colours, xerr=whiskers, ecolor="#666666")
    axis.bar_label(shapes, labels=[bar.label for bar in known], padding=4)
    axis.set_yticks(places, labels=labels)
    axis.invert_yaxis()
    axis.margins(x=0.15)


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    names = [
        (name, title)
        for name, title in differing(rows)
        if name not in ("bundle", "precision", "weights_size")
    ]
    return [
        ", ".join(
            [
                f"{row['bundle']} ({row['precision']})",
                *(f"{title} {setting(name, row[name])}" for name, title in names),
            ]
        )
        for row in rows
    ]


def bars(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[Bar | None]]]:
    """Yields each plot's title and a bar a row, None where a row does not have the number."""

    def seconds(name: str) -> list[Bar | None]:
        return [
            Bar(
                1e3 * row[name]["p50"],
                1e3 * row[name]["p99"],
                f"{milliseconds(row[name]['p50'])} ms",
            )
            for row in rows
        ]

    def plain(values: list[float | None], show: Callable[[float], str]) -> list[Bar | None]:
        return [None if value is None else Bar(value, value, show(value)) for value in values]

    yield "Latency of a call: median, line to p99 (less is better)", seconds("latency_seconds")
    speed = [row["tokens_per_second"] for row in rows]
    yield "Generated tokens a second (more is better)", plain(speed, significant)
    yield "Time to first token: median, line to p99", seconds("first_token_seconds")
    yield "Load, fresh process to first token: median, line to p99", seconds("load_seconds")
    for name in ("private", "shared", "peak"):
        sizes = [size and size / _MIB for size in (row["memory"][name] for row in rows)]
        if any(size is not None for size in sizes):
            yield f"Memory, {name}", plain(sizes, lambda size: f"{size:,.0f} MiB")
