"""Line charts as SVG, with logarithmic axes and nothing but the standard library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 490, 60, 310
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis: numbers from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.low == self.high:
            return (self.start + self.end) / 2
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """A chart of several lines; every number must be above 0, and x are marked where they are."""
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    marks = _marks(min(ys), max(ys))
    across = _Axis(xs[0], xs[-1], LEFT, RIGHT)
    up = _Axis(marks[0], marks[-1], BOTTOM, TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(20, 22, title, "start"),
        _text(20, 44, y_label, "start"),
        _text((LEFT + RIGHT) / 2, HEIGHT - 12, x_label, "middle"),
    ]
    for x in xs:
        lines.append(_line(across(x), TOP, across(x), BOTTOM))
        lines.append(_text(across(x), BOTTOM + 18, f"{x:g}", "middle"))
    for y in marks:
        lines.append(_line(LEFT, up(y), RIGHT, up(y)))
        lines.append(_text(LEFT - 8, up(y) + 4, f"{y:g}", "end"))
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        lines += _series(name, colour, [(across(x), up(y)) for x, y in points], index)
    return "\n".join([*lines, "</svg>", ""])


def _series(name: str, colour: str, points: Points, index: int) -> Iterator[str]:
    """A line with its points, and its name beside the chart."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    height = TOP + 10 + 20 * index
    yield f'<circle cx="{RIGHT + 18}" cy="{height}" r="5" fill="{colour}"/>'
    yield _text(RIGHT + 30, height + 4, name, "start")


def _marks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times a power of ten from just below `low` to just above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    return [step for step in steps if first <= step <= last]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
