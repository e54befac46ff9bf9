"""`m2m100 align`: sources with their translations in, links between their words out.

Knows lines and files; leaves alignments to the translator.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from m2m100_onnx.cli.arguments import (
    Commands,
    add_call_options,
    add_command,
    add_device,
    add_languages,
    add_model,
    add_threads,
    given_options,
    opening,
    path,
)
from m2m100_onnx.cli.cache import add_cache_options
from m2m100_onnx.cli.files import open_output
from m2m100_onnx.cli.lines import add_files, answer_lines, check_input
from m2m100_onnx.cli.pairs import sides_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.translation import Alignment, AlignmentHeads

if TYPE_CHECKING:
    from m2m100_onnx.translator import Translator

__all__ = ["add_parser"]

_ABOUT = "Align the words of sources with those of their translations."
_DESCRIPTION = f"""\
{_ABOUT}

A line is a source and its translation with a tab between them, as `paste SOURCES TARGETS` makes it.
Its alignment is a line of places of words that belong together, such as 0-0 1-2: the source's and
the translation's, from 0 (Pharaoh format)."""
_MOST_PLOTTED = 100


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    parser = add_command(commands, "align", _run, _ABOUT, _DESCRIPTION)
    add = parser.add_argument
    add_files(add, "Pairs to align")
    add_model(add)
    about = "Language of the {}."
    add_languages(add, about.format("sources"), about.format("translations"), required=True)
    add("--json", action="store_true", help="Write a JSON object a line, with words and matrix.")
    about = f"File of a picture, .html, .svg, .png or .pdf, of at most {_MOST_PLOTTED} pairs."
    add("--plot", type=path, metavar="F", help=about)
    about = "Layer of the decoder and its heads, such as 5:0,3. (default: what aligns best)"
    add("--heads", type=_heads, metavar="LAYER:HEAD,...", help=about)
    about = "With --heads, take the attention of the steps that predict a word."
    add("--predicting", action="store_true", help=about)
    add_device(add)
    add_threads(add)
    add_cache_options(add)
    add_call_options(parser, "call")


def _heads(text: str) -> AlignmentHeads:
    layer, _, heads = text.partition(":")
    try:
        return AlignmentHeads(int(layer), tuple(map(int, heads.split(","))))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a layer and its heads such as 5:0,3, found {text!r}"
        ) from None


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.cli import alignment_plots as plots
    from m2m100_onnx.translator import Translator

    check_input(arguments)
    heads = arguments.heads
    if arguments.predicting:
        if heads is None:
            raise InvalidInputError("--predicting: expected --heads with it, found none")
        heads = AlignmentHeads(heads.layer, heads.heads, fed=False)
    if arguments.plot is not None:
        plots.check(arguments.plot)
    translator = Translator(arguments.model, **opening(arguments))
    plotted: list[Alignment] = []

    def answer(lines: list[str]) -> list[str]:
        found = _aligned(translator, lines, arguments, heads)
        if arguments.plot is not None:
            plotted.extend(found)
            if len(plotted) > _MOST_PLOTTED:
                raise InvalidInputError(
                    f"--plot: expected at most {_MOST_PLOTTED} pairs, found more"
                )
        return [_line(alignment, as_json=arguments.json) for alignment in found]

    status = answer_lines(arguments, answer)
    if arguments.plot is not None and status == 0:
        with open_output(arguments.plot) as file:
            plots.save(plotted, arguments.plot, file)
    return status


def _aligned(
    translator: Translator,
    lines: list[str],
    arguments: argparse.Namespace,
    heads: AlignmentHeads | None,
) -> list[Alignment]:
    sides = [sides_of(line, position) for position, line in enumerate(lines)]
    return translator.align(
        [source for source, _ in sides],
        [target for _, target in sides],
        source_lang=arguments.source_lang,
        target_lang=arguments.target_lang,
        heads=heads,
        **given_options(arguments),
    )


def _line(alignment: Alignment, *, as_json: bool) -> str:
    return json.dumps(asdict(alignment), ensure_ascii=False) if as_json else str(alignment)
