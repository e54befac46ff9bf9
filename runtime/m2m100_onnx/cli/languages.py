"""`m2m100 languages`: the codes that a bundle translates."""

from __future__ import annotations

import argparse
import json

from m2m100_onnx.cli.arguments import Commands, add_command, add_model
from m2m100_onnx.cli.output import has_terminal, print_columns, print_lines

__all__ = ["add_parser"]


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    parser = add_command(
        commands, "languages", _run, "List the languages that a bundle translates."
    )
    add = parser.add_argument
    add_model(add)
    about = "List languages without training as well: the bundle has a token for them."
    add("--all", action="store_true", help=about)
    add("--json", action="store_true", help="Print JSON.")


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.bundle.bundle import Bundle
    from m2m100_onnx.text.languages import names_of
    from m2m100_onnx.text.tokenizer import Tokenizer

    bundle = Bundle.open(arguments.model)
    tokenizer = Tokenizer(
        bundle.directory,
        family=bundle.manifest.family if bundle.manifest else None,
        embedding_rows=bundle.config.vocab_size,
        trained_languages=bundle.manifest.languages if bundle.manifest else None,
    )
    codes = tokenizer.all_languages if arguments.all else tokenizer.languages
    trained = {code: code in tokenizer.languages for code in codes}
    names = names_of(codes)
    if arguments.json:
        rows = [{"code": c, "name": names.get(c), "trained": is_so} for c, is_so in trained.items()]
        print_lines([json.dumps(rows, ensure_ascii=False)])
    elif has_terminal():
        named = {c: f"{c} {names[c]}" if c in names else c for c in codes}
        print_columns(
            named[c] if is_so else f"{named[c]} (untrained)" for c, is_so in trained.items()
        )
    else:
        print_lines(c if is_so else f"{c}\tuntrained" for c, is_so in trained.items())
    return 0
