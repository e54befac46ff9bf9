"""Line charts with logarithmic axes, drawn by matplotlib in the style of `m2m100 benchmark`."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from m2m100_onnx.cli.benchmark.plots import COLOURS, STYLE

Points = Sequence[tuple[float, float]]

_DIGEST = re.compile(r"numbers [0-9a-f]{64}")


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Returns a chart of several lines as SVG; x are marked where they are.

    Every number must be above 0.
    """
    xs = sorted({x for points in series.values() for x, _ in points})
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axis = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
        for index, (name, points) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(xs, labels=[f"{x:g}" for x in xs])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(color="#dddddd")
        figure.legend(loc="outside right upper", frameon=False)
        image = io.StringIO()
        facts = {"Date": None, "Creator": None, "Description": _digest([title, x_label, series])}
        figure.savefig(image, format="svg", metadata=facts)
    return image.getvalue()


def drawn_from(svg: str) -> str:
    """Returns what a chart's file says of its numbers; each matplotlib draws them differently."""
    found = _DIGEST.search(svg)
    return found[0] if found else ""


def _digest(numbers: object) -> str:
    return f"numbers {hashlib.sha256(json.dumps(numbers).encode()).hexdigest()}"
