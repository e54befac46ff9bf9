"""What the arguments of several commands have in common, and the flags of the options of a call.

Knows argparse and the table of options, from which `--beam-size` and the others are made. Knows no
command, and imports nothing that `m2m100 --help` does not need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from typing import Any

from m2m100_onnx.options import OPTIONS, Option

__all__ = [
    "Add",
    "Commands",
    "add_call_options",
    "add_command",
    "add_device",
    "add_kernels",
    "add_languages",
    "add_model",
    "add_revision",
    "add_threads",
    "as_typed",
    "given_options",
    "kernels",
    "opening",
    "path",
]

Add = Callable[..., argparse.Action]
# argparse gives no public name to what `add_subparsers` returns.
Commands = argparse._SubParsersAction

_EARLY_STOPPING = {"true": True, "false": False, "never": "never"}
# The parameters of the library whose flags have another name, or stand outside the table.
_FLAGS = {
    **{name: f"--{name.replace('_', '-')}" for name in OPTIONS},
    "actors": "--actors",
    "address": "--address",
    "cache_dir": "--cache-dir",
    "cpus": "--cpus",
    "device": "--device",
    "kernels": "--kernels",
    "gpus": "--gpus",
    "intra_op_num_threads": "--threads",
    "kv_cache_dtype": "--kv-cache-dtype",
    "on_error": "--on-error",
    "read_ahead": "--read-ahead",
    "revision": "--revision",
    "shard_rows": "--shard-rows",
    "source_lang": "--source-lang",
    "source_lang_column": "--source-lang-column",
    "target_lang": "--target-lang",
    "target_lang_column": "--target-lang-column",
    "target_prefix": "--target-prefix",
    "terms": "--terms",
}
# What a message is about, and the limits that it names: "min_length: expected max_length = 5".
_PARAMETER = re.compile(rf"(?:\A(?=\w+: )|\b(?=\w+ = ))({'|'.join(_FLAGS)})\b")
# The options that the help of another names.
_UNDERSCORED = re.compile(rf"\b(?:{'|'.join(name for name in _FLAGS if '_' in name)})\b")


def add_command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
    description: str | None = None,
) -> argparse.ArgumentParser:
    """Adds a command to the parser of `m2m100`.

    Args:
        commands: the commands so far.
        name: its name on the command line.
        run: carries it out and returns its exit status.
        about: its line in the help of `m2m100`.
        description: the head of its own help, laid out in lines; `about` by default.
    """
    parser = commands.add_parser(
        name,
        help=about,
        description=description or about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def path(text: str) -> str:
    """Returns a path argument with `~` expanded, as no shell does inside `--input=~/text`."""
    return os.path.expanduser(text)  # noqa: PTH111 - a `pathlib.Path` would turn "./-" into "-"


def add_model(add: Add) -> None:
    """Adds --model and --revision, the bundle."""
    about = "Folder of the bundle, or its name on the hub (org/name)."
    add("-m", "--model", required=True, type=path, metavar="BUNDLE", help=about)
    add_revision(add)


def add_revision(add: Add) -> None:
    """Adds --revision, for what may be a name on the hub."""
    add("--revision", metavar="R", help="Branch, tag or commit on the hub.")


def add_languages(add: Add, source: str, target: str, *, required: bool) -> None:
    """Adds --source-lang and --target-lang, with a help for each."""
    add("-s", "--source-lang", required=required, metavar="CODE", help=source)
    add("-t", "--target-lang", required=required, metavar="CODE", help=target)


def add_device(add: Add) -> None:
    """Adds --device."""
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto. (default: cpu)")


def add_threads(add: Add) -> None:
    """Adds --threads."""
    about = "Threads inside an operator. (default: all cores)"
    add("--threads", type=int, metavar="N", help=about)


def add_kernels(add: Add) -> None:
    """Adds --kernels, --no-kernels and --kv-cache-dtype."""
    about = "Use the operators of m2m100-onnx-kernels, or not. (default: where they run)"
    add("--kernels", action=argparse.BooleanOptionalAction, help=about)
    about = "Type of kept keys and values; float16 needs the kernels. (default: float32)"
    add("--kv-cache-dtype", choices=("float32", "float16"), help=about)


def kernels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what `add_kernels` has read, as the library takes it."""
    return {"kernels": arguments.kernels, "kv_cache_dtype": arguments.kv_cache_dtype}


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns how a command opens its model, as the library takes it."""
    return {
        "revision": arguments.revision,
        "device": arguments.device,
        "intra_op_num_threads": arguments.threads,
        "cache_dir": arguments.cache_dir,
        # Opening the graphs takes seconds, and arguments may yet turn out to be wrong.
        "lazy": True,
    }


def add_call_options(parser: argparse.ArgumentParser, *scopes: str) -> None:
    """Adds a flag for each row of the table of options, or for those of some scopes.

    A flag that is not given leaves no trace in the namespace, so that the bundle's own setting
    applies.
    """
    about = {
        "search": (
            "search options",
            "The bundle's generation_config.json decides what is not given here.",
        ),
        "call": ("options of the call",),
    }
    wanted = scopes or tuple(about)
    groups = {scope: parser.add_argument_group(*about[scope]) for scope in wanted}
    for option in OPTIONS.values():
        if option.scope not in groups:
            continue
        text = _UNDERSCORED.sub(lambda found: _FLAGS[found[0]], option.help.replace("%", "%%"))
        if option.scope == "call" and option.default not in (None, False):
            text = f"{text} (default: {option.default})"
        groups[option.scope].add_argument(
            _FLAGS[option.name], default=argparse.SUPPRESS, help=text, **_parsing(option)
        )


def _parsing(option: Option) -> dict[str, Any]:
    """How argparse reads an option; the table checks the value itself, later."""
    kind = option.type.removesuffix(" | None")
    if kind == "bool":
        return {"action": "store_true"}
    if option.name == "early_stopping":
        return {"choices": tuple(_EARLY_STOPPING)}
    if kind == "tuple[str | tuple[int, ...], ...]":
        return {"type": _sequences, "metavar": "TEXT|ID,...;..."}
    if kind == "tuple[int, ...]":
        return {"type": _ids, "metavar": "ID,..."}
    return {"int": {"type": int, "metavar": "N"}, "float": {"type": float, "metavar": "X"}}[kind]


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(","))) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected token ids with commas between them, found {text!r}"
        ) from None


def _sequences(text: str) -> tuple[str | tuple[int, ...], ...]:
    """Reads ids such as `7,8;9`, a JSON list of texts and lists of ids, or one text."""
    if not text:
        return ()
    if re.fullmatch(r"\d+([,;]\d+)*", text):
        return tuple(map(_ids, text.split(";")))
    if not text.startswith("["):
        return (text,)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON list, found {text!r}: {error}") from None
    return tuple(tuple(each) if isinstance(each, list) else each for each in found)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the table that the command line gave, as the library takes them."""
    values = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    if "early_stopping" in values:
        values["early_stopping"] = _EARLY_STOPPING[values["early_stopping"]]
    return values


def as_typed(message: str) -> str:
    """Returns an error's message with flags in place of the library's parameters."""
    named = _PARAMETER.sub(lambda found: _FLAGS[found[1]], message)
    return named.replace(", or None, found", ", found")  # A flag that is left out is None.
