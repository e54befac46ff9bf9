"""`m2m100 export`: a checkpoint becomes a bundle.

A service installs the runtime alone, so the exporter is imported by name when the command runs, and
this file says what to install where it is missing.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.bundle.graphs import PRECISIONS
from m2m100_onnx.cli.arguments import Commands, add_command, add_revision, path
from m2m100_onnx.cli.output import print_lines
from m2m100_onnx.errors import DependencyError

__all__ = ["add_parser"]

_CAUSAL = {"true": True, "false": False}


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    add = add_command(commands, "export", _run, "Turn a checkpoint into a bundle.").add_argument
    about = "A folder, or an id on the hub such as facebook/m2m100_418M."
    add("checkpoint", type=path, metavar="CHECKPOINT", help=about)
    add("bundle", type=path, metavar="BUNDLE", help="Folder to make.")
    about = "Precision of the weights. (default: fp32)"
    add("--precision", choices=PRECISIONS, default="fp32", help=about)
    add_revision(add)
    about = "Codes of the languages that the checkpoint was trained on."
    add("--languages", metavar="en,de,...", help=about)
    about = "Family of a checkpoint whose files do not tell it, such as small100."
    add("--family", choices=tuple(FAMILIES), help=about)
    about = "Folder of a LoRA adapter, as PEFT saves it, to merge into the bundle."
    add("--adapter", type=path, metavar="FOLDER", help=about)
    about = (
        "Whether the tokens of a language model see earlier ones alone. Published causal "
        "checkpoints do not say so. (default: what config.json says)"
    )
    add("--causal", choices=tuple(_CAUSAL), help=about)
    add("--overwrite", action="store_true", help="Replace an existing bundle.")
    about = "Skip the comparison of the bundle with PyTorch."
    add("--no-verify", action="store_true", help=about)


def _run(arguments: argparse.Namespace) -> int:
    try:
        exporter = importlib.import_module("m2m100_onnx_export")
    except ImportError as error:
        raise DependencyError(
            f"an export needs more than the runtime ({error}); "
            "run `pip install 'm2m100-onnx[export]'`"
        ) from error
    result = exporter.export(
        arguments.checkpoint,
        arguments.bundle,
        precision=arguments.precision,
        revision=arguments.revision,
        languages=None if arguments.languages is None else arguments.languages.split(","),
        family=arguments.family,
        adapter=arguments.adapter,
        causal=None if arguments.causal is None else _CAUSAL[arguments.causal],
        overwrite=arguments.overwrite,
        verify_outputs=not arguments.no_verify,
        progress=lambda message: print(message, file=sys.stderr, flush=True),
    )
    size = sum(path.stat().st_size for path in result.bundle.iterdir())
    lines = [f"bundle: {result.bundle}", f"size: {size:,} bytes", f"seconds: {result.seconds:.1f}"]
    print_lines([*lines, *(result.report.lines() if result.report else ["not verified"])])
    return 0
