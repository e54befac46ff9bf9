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
        commands, "languages", _run, "List the languages that a bundle translates or scores."
    )
    add = parser.add_argument
    add_model(add)
    about = "List languages without training as well: the bundle has a token for them."
    add("--all", action="store_true", help=about)
    add("--json", action="store_true", help="Print JSON.")


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.bundle.kinds import open_bundle
    from m2m100_onnx.bundle.language_model import LanguageModelBundle
    from m2m100_onnx.text.tokenizer import Tokenizer
    from m2m100_onnx.text.xlm import XLMTokenizer

    bundle = open_bundle(arguments.model, arguments.revision)
    if isinstance(bundle, LanguageModelBundle):
        codes = XLMTokenizer(bundle.directory).languages
        trained = dict.fromkeys(codes, True)
    else:
        tokenizer = Tokenizer(
            bundle.directory,
            family=bundle.manifest.family if bundle.manifest else None,
            embedding_rows=bundle.config.vocab_size,
            trained_languages=bundle.manifest.languages if bundle.manifest else None,
        )
        codes = tokenizer.all_languages if arguments.all else tokenizer.languages
        trained = {code: code in tokenizer.languages for code in codes}
    _print(trained, as_json=arguments.json)
    return 0


def _print(trained: dict[str, bool], *, as_json: bool) -> None:
    from m2m100_onnx.text.languages import names_of

    names = names_of(trained)
    if as_json:
        rows = [{"code": c, "name": names.get(c), "trained": is_so} for c, is_so in trained.items()]
        print_lines([json.dumps(rows, ensure_ascii=False)])
    elif has_terminal():
        named = {c: f"{c} {names[c]}" if c in names else c for c in trained}
        print_columns(
            named[c] if is_so else f"{named[c]} (untrained)" for c, is_so in trained.items()
        )
    else:
        print_lines(c if is_so else f"{c}\tuntrained" for c, is_so in trained.items())
