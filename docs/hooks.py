"""What the manual does not type by hand: tables made from the code, and files of the repository.

A page asks for a part with a comment on a line of its own:

    <!-- options -->             the table of options
    <!-- option: beam_size -->   one option: its help, what it accepts, its default
    <!-- errors -->              the tree of errors
    <!-- help: translate -->     what `m2m100 translate --help` prints
    <!-- help: -->               what `m2m100 --help` prints

The file knows Markdown and the package's tables. It imports nothing that needs numpy.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2m100_onnx import errors
from m2m100_onnx.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that the manual shows where they are; relative links between them hold.
INCLUDED = ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/results/*.svg")
_MARKER = re.compile(r"^<!-- (options|option|errors|help)(?:: ?([\w -]*))? -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files of `INCLUDED` to the manual."""
    from mkdocs.structure.files import File

    for pattern in INCLUDED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces a page's markers."""
    return fill(markdown)


def fill(markdown: str) -> str:
    """Returns a page with every marker replaced by its part.

    Raises:
        KeyError: a marker names an option that does not exist.
        subprocess.CalledProcessError: a marker names a command that does not exist.
    """
    return _MARKER.sub(lambda marker: _PARTS[marker[1]](marker[2] or ""), markdown)


def options_table(_: str = "") -> str:
    """Every option: its default, and its names on the command line and in other tools."""
    rows = [
        f"| [`{row.name}`](#{row.name}) | {_value(row.default)} | `--{row.name.replace('_', '-')}` "
        f"| {_code(row.transformers)} | {_code(row.ctranslate2)} |"
        for row in OPTIONS.values()
    ]
    header = "| option | default | command line | transformers | CTranslate2 |"
    return "\n".join([header, "| --- | --- | --- | --- | --- |", *rows])


def option(name: str) -> str:
    """One option's sentence, what it accepts and its default."""
    row = OPTIONS[name]
    return f"{row.help} Accepts {row.accepted}. Default: {_value(row.default)}."


def errors_table(_: str = "") -> str:
    """Every error class, by its place in the tree, with its first sentence."""
    rows = ["| error | is also a | when |", "| --- | --- | --- |"]
    return "\n".join([*rows, *_tree(errors.M2M100Error, 0)])


def _tree(error: type[Exception], depth: int) -> Iterator[str]:
    bases = [base for base in error.__bases__ if base is not Exception]
    builtins = [base.__name__ for base in bases if base.__module__ == "builtins"]
    sentence = (error.__doc__ or "").partition("\n")[0]
    indent = "&emsp;" * depth
    yield f"| {indent}`{error.__name__}` | {', '.join(map(_code, builtins))} | {sentence} |"
    for child in error.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def command_help(command: str) -> str:
    """What a command's `--help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "m2m100_onnx", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return f"```text\n{done.stdout.rstrip()}\n```"


def _code(name: str | None) -> str:
    return f"`{name}`" if name else ""


def _value(default: object) -> str:
    return "none" if default in (None, ()) else f"`{default}`"


_PARTS: dict[str, Callable[[str], str]] = {
    "options": options_table,
    "option": option,
    "errors": errors_table,
    "help": command_help,
}
