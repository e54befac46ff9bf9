"""`m2m100 translate`: lines in, lines out.

Knows lines, files and terminals. It leaves tokens, batches and checks to the translator, whose
errors name their text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from m2m100_onnx.cli.arguments import (
    Add,
    Commands,
    add_call_options,
    add_command,
    add_device,
    add_kernels,
    add_languages,
    add_model,
    add_threads,
    as_typed,
    given_options,
    kernels,
    opening,
    path,
)
from m2m100_onnx.cli.cache import add_cache_options
from m2m100_onnx.cli.files import open_output
from m2m100_onnx.cli.lines import LINE_BREAK, Texts, add_files, check_input, encoded, open_input
from m2m100_onnx.cli.output import progress, warn
from m2m100_onnx.errors import InvalidInputError, M2M100Error, StoppedError
from m2m100_onnx.options import READ_AHEAD
from m2m100_onnx.translation import EMPTY, Translation

__all__ = ["add_parser", "facts_of"]

_PROGRESS = "{task.fields[lines]:,} lines, {task.fields[rate]:,.1f} lines/s"


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    parser = add_command(commands, "translate", _run, "Translate lines of text.")
    _add_arguments(parser.add_argument)
    add_call_options(parser)


def _add_arguments(add: Add) -> None:
    add_files(add, "Texts to translate")
    add_model(add)
    source = "Language of the input, such as en."
    add_languages(add, source, "Language to translate into.", required=True)
    about = "Text that every translation begins with."
    add("--target-prefix", metavar="TEXT", help=about)
    about = (
        "Terms that translations must contain: lines of a term and its targets with tabs between "
        "them, or a TBX file (.tbx, .xml)."
    )
    add("--terms", type=path, metavar="F", help=about)
    add("--json", action="store_true", help="Write a JSON object a line, with scores and tokens.")
    add_device(add)
    add_threads(add)
    add_kernels(add)
    add_cache_options(add)
    add(
        "--on-error",
        choices=("raise", "skip", "return"),
        default="raise",
        help="What to do with a line that cannot be translated: end with an error, write an empty "
        "line in its place, or write the error in its place (with --json). (default: raise)",
    )
    about = (
        "Lines that are read and translated together. "
        f"(default: {READ_AHEAD}; 1 for lines typed on a terminal)"
    )
    add("--read-ahead", type=int, default=READ_AHEAD, metavar="N", help=about)


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.translator import Translator

    check_input(arguments)
    if arguments.on_error == "return" and not arguments.json:
        raise InvalidInputError("on_error: expected --json with return, found none")
    languages = {"source_lang": arguments.source_lang, "target_lang": arguments.target_lang}
    translator = Translator(arguments.model, **kernels(arguments), **opening(arguments))
    for code in languages.values():
        translator.tokenizer.language_id(code)
    with open_input(arguments) as source, open_output(arguments.output) as output:
        typed = not isinstance(source, list) and source.isatty()
        # Whoever types waits for the answer to each line.
        ahead = 1 if typed else arguments.read_ahead
        texts = Texts(source)
        # It refuses wrong options at once, and reads nothing before its first result is asked for.
        found = translator.translate_iterable(
            texts,
            read_ahead=ahead,
            # Where lines are skipped, their errors say which.
            on_error="raise" if arguments.on_error == "raise" else "return",
            **languages,
            **_given(arguments),
        )
        translator.model.load()
        written = _Lines(output, languages if arguments.json else None, ahead)
        written.shows_errors = arguments.on_error == "return"
        _write_all(found, texts, written)
        output.flush()
    if written.errors:
        warn(f"{written.errors} of {written.count} {texts.noun}s could not be translated")
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the call that the command line gave."""
    given = given_options(arguments)
    if arguments.target_prefix is not None:
        given["target_prefix"] = arguments.target_prefix
    if arguments.terms is not None:
        from m2m100_onnx.text.term_files import read_terms

        languages = arguments.source_lang, arguments.target_lang
        try:
            given["terms"] = read_terms(arguments.terms, *languages)
        except OSError as error:
            raise InvalidInputError(f"cannot read {arguments.terms}: {error.strerror}") from None
    return given


def _write_all(found: Iterator[Translation | M2M100Error], texts: Texts, written: _Lines) -> None:
    """Writes every translation.

    Raises:
        InvalidInputError: a text cannot be translated; those before it are written.
        StoppedError: the time was over; what was done before is written.
    """
    started = time.monotonic()
    # Answers that appear on a terminal are progress enough.
    shown = texts.size is not None and not written.output.isatty()
    bar = progress(shown=shown, total=texts.size or None, text=_PROGRESS, lines=0, rate=0.0)
    try:
        with bar as update:
            for result in found:
                line = texts.waiting.popleft()
                if isinstance(result, M2M100Error):
                    message = line.problem or result.message
                    warn(f"{texts.noun} {written.count + 1}: {message}")
                    written.write_error(line.text, type(result).__name__, message)
                else:
                    written.write(line.text, result)
                rate = written.count / max(time.monotonic() - started, 1e-9)
                update(advance=line.size, lines=written.count, rate=rate)
    except StoppedError as error:
        written.output.flush()
        reason = as_typed(str(error.args[0]))
        raise StoppedError(f"{reason}; lines translated: {written.count}") from error
    except M2M100Error as error:
        written.output.flush()
        if error.position is None:
            raise
        place = f"{texts.noun} {error.position + 1}"
        message = texts.waiting[-1].problem or error.message  # It was the last to be read.
        raise InvalidInputError(f"{place}: {message}") from error


def facts_of(translation: Translation) -> dict[str, Any]:
    """Returns what a line of JSON has of a translation; an alignment where there is one."""
    found = asdict(translation)
    for hypothesis in found["hypotheses"]:
        if hypothesis["alignment"] is None:
            del hypothesis["alignment"]
    return found


class _Lines:
    """Writes a line for each text, and counts.

    Attributes:
        count: lines that were written.
        errors: how many of them stand for a text that could not be translated.
        shows_errors: whether such a line, which is JSON, has the error; else it is that of an empty
            text, so that each line stays beside its source.
    """

    def __init__(self, output: BinaryIO, languages: dict[str, str] | None, every: int) -> None:
        """Lines are JSON where `languages` are given, and are flushed `every` so many."""
        self.output, self.count, self.errors, self.shows_errors = output, 0, 0, False
        self._languages, self._every = languages, every

    def write(self, source: str, translation: Translation) -> None:
        """Writes one line."""
        # A vocabulary may hold a line break, and one line more would shift all that follow.
        line = LINE_BREAK.sub(" ", translation.text)
        if self._languages:
            record = {"source": source, **self._languages, **facts_of(translation)}
            line = json.dumps(record, ensure_ascii=False)
        self._put(line)

    def write_error(self, source: str, kind: str, message: str) -> None:
        """Writes the line of a text that could not be translated."""
        self.errors += 1
        if self.shows_errors:
            error = {"type": kind, "message": message}
            record = {"source": source, **(self._languages or {}), "error": error}
            self._put(json.dumps(record, ensure_ascii=False))
        else:
            self.write(source, EMPTY)

    def _put(self, line: str) -> None:
        self.output.write(encoded(line))
        self.count += 1
        if self.count % self._every == 0:
            self.output.flush()
