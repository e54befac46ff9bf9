"""Alignments as pictures: a heat map for each pair, in HTML or drawn by matplotlib.

Knows alignments and formats; knows no model. HTML needs nothing else, from nowhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from m2m100_onnx.cli.benchmark import plots
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.translation import Alignment

__all__ = ["check", "save"]

_FORMATS = (".html", ".svg", ".png", ".pdf")
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Alignments</title><style>
body { font: 14px sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 0 0 2em }
th { font-weight: normal; text-align: right; padding: 2px 6px }
thead th { text-align: left; vertical-align: bottom; writing-mode: vertical-rl; rotate: 180deg }
td { width: 22px; height: 22px; border: 1px solid #eee }
td.pair { outline: 2px solid #d55e00; outline-offset: -2px }
</style></head><body>
"""


def check(name: str) -> None:
    """Refuses a file that `save` could not write.

    Raises:
        InvalidInputError: the name does not end like a format.
        DependencyError: matplotlib is needed and not installed.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in _FORMATS:
        raise InvalidInputError(
            f"--plot: expected a name that ends in {', '.join(_FORMATS)}, found {name}"
        )
    if suffix != ".html":
        plots.check(name)


def save(alignments: Sequence[Alignment], name: str, file: BinaryIO) -> None:
    """Writes a heat map of each alignment: source words across, target words down.

    Args:
        alignments: one or more.
        name: a name that `check` accepts, whose end says the format.
        file: where to write.
    """
    suffix = Path(name).suffix[1:].lower()
    if suffix == "html":
        file.write("".join(_page(alignments)).encode())
    else:
        _draw(alignments, suffix, file)


def _page(alignments: Sequence[Alignment]) -> Iterator[str]:
    yield _HEAD
    for alignment in alignments:
        yield "<table><thead><tr><th></th>"
        yield from (f"<th scope=col>{html.escape(word)}</th>" for word in alignment.source_words)
        yield "</tr></thead><tbody>"
        pairs = set(alignment.pairs)
        for target, (word, row) in enumerate(
            zip(alignment.target_words, alignment.matrix, strict=True)
        ):
            yield f"<tr><th scope=row>{html.escape(word)}</th>"
            for source, weight in enumerate(row):
                marked = " class=pair" if (source, target) in pairs else ""
                colour = f"rgba(0,114,178,{min(weight, 1):.2f})"
                yield f'<td{marked} style="background:{colour}" title="{weight:.2f}"></td>'
            yield "</tr>"
        yield "</tbody></table>\n"
    yield "</body></html>\n"


def _draw(alignments: Sequence[Alignment], suffix: str, file: BinaryIO) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [1.2 + 0.3 * len(alignment.target_words) for alignment in alignments] or [1.0]
    width = max([4.0, *(1.5 + 0.4 * len(alignment.source_words) for alignment in alignments)])
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        for axis, alignment in zip(axes, alignments, strict=False):
            _draw_one(axis, alignment)
        figure.savefig(file, format=suffix)


def _draw_one(axis: Any, alignment: Alignment) -> None:
    if alignment.matrix and alignment.source_words:
        axis.imshow(alignment.matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(alignment.source_words)), alignment.source_words, rotation=60)
    axis.set_yticks(range(len(alignment.target_words)), alignment.target_words)
    for source, target in alignment.pairs:
        axis.plot(source, target, marker="s", markersize=9, fillstyle="none", color="#d55e00")
