"""`m2m100 completion`: prints what makes a shell complete commands, flags and paths."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from m2m100_onnx.cli.arguments import Commands, add_command
from m2m100_onnx.cli.output import print_lines
from m2m100_onnx.errors import DependencyError

__all__ = ["add_parser"]

_ABOUT = "Print the completion script of a shell."
_DESCRIPTION = f"""\
{_ABOUT}

  bash   eval "$(m2m100 completion bash)"      in ~/.bashrc
  zsh    eval "$(m2m100 completion zsh)"       in ~/.zshrc, after compinit
  tcsh   m2m100 completion tcsh | source /dev/stdin    in ~/.tcshrc"""
_FILES, _FOLDERS = ("FILE",), ("BUNDLE", "CHECKPOINT", "DIR")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    parser = add_command(commands, "completion", _run, _ABOUT, _DESCRIPTION)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="The shell.")


def _run(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise DependencyError(
            "completion needs shtab; run `pip install 'm2m100-onnx[cli]'`"
        ) from error
    from m2m100_onnx.cli.main import make_parser

    parser = make_parser()
    for action in _actions(parser):
        # The metavar says what an argument is, in the help and here.
        if action.metavar in _FILES:
            action.complete = shtab.FILE
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY
    print_lines([shtab.complete(parser, arguments.shell)])
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yields every argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
