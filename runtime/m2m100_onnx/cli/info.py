"""`m2m100 info`: what a bundle is and holds."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from m2m100_onnx.cli.arguments import Commands, add_command, add_revision, path
from m2m100_onnx.cli.output import complain, has_terminal, print_lines, print_table
from m2m100_onnx.errors import BundleError

if TYPE_CHECKING:
    from m2m100_onnx.bundle.bundle import Bundle
    from m2m100_onnx.bundle.language_model import LanguageModelBundle

__all__ = ["add_parser"]

_SECTIONS = ("manifest", "model", "generation")


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    add = add_command(commands, "info", _run, "Describe a bundle and its files.").add_argument
    about = "Folder of the bundle, or its name on the hub (org/name)."
    add("bundle", type=path, metavar="BUNDLE", help=about)
    add_revision(add)
    about = "Compare the SHA-256 of every file with the manifest's."
    add("--verify", action="store_true", help=about)
    add("--json", action="store_true", help="Print JSON.")


def _run(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.bundle.kinds import open_bundle

    bundle = open_bundle(arguments.bundle, arguments.revision)
    if arguments.verify:
        try:
            bundle.verify()
        except BundleError as error:
            complain(str(error))
            return 1 if bundle.manifest else 2
    facts = _facts(bundle, verified=arguments.verify)
    if arguments.json:
        print_lines([json.dumps(facts, ensure_ascii=False)])
    elif has_terminal():
        _print_tables(facts)
    else:
        print_lines(_lines(facts))
    return 0


def _facts(bundle: Bundle | LanguageModelBundle, *, verified: bool) -> dict[str, Any]:
    manifest = asdict(bundle.manifest) if bundle.manifest else {"files": {}, "graphs": {}}
    records, graphs = manifest.pop("files"), manifest.pop("graphs")
    files = {
        file.name: {"sha256": None, **records.get(file.name, {}), "size": file.stat().st_size}
        for file in sorted(bundle.directory.iterdir())
        if file.is_file()
    }
    from m2m100_onnx.bundle.graphs import CROSS_ATTENTION_FILE

    fused = bundle.fused_files if bundle.has_fused_graphs else ()
    native = bundle.native_files if bundle.has_native_graphs else ()
    attention = filter(bundle.has_graph, (CROSS_ATTENTION_FILE,))
    others = filter(bundle.has_graph, bundle.other_native_files)
    names = (*bundle.portable_files, *attention, *fused, *native, *others)
    return {
        "bundle": os.fspath(bundle.directory),
        "kind": bundle.manifest.kind if bundle.manifest else "translation",
        "precision": bundle.precision,
        "total_size": sum(file["size"] for file in files.values()),
        "verified": verified,
        "manifest": manifest or None,
        "model": asdict(bundle.config),
        "generation": dict(getattr(bundle, "generation", {})),
        "graphs": {name: graphs.get(name, asdict(bundle.signature(name))) for name in names},
        "files": files,
    }


def _title(facts: dict[str, Any]) -> str:
    kind = ""
    if facts["kind"] == "language model":
        kind = f"{'causal' if facts['model']['causal'] else 'masked'} language model, "
    return f"{facts['bundle']}: {kind}{facts['precision']}, {facts['total_size']:,} bytes"


def _files_title(facts: dict[str, Any]) -> str:
    return f"files{', each with the SHA-256 of the manifest' if facts['verified'] else ''}"


def _settings(section: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    for name, value in (section or {}).items():
        shown = " ".join(value) if isinstance(value, tuple) else value
        yield name, "not given" if value is None else str(shown)


def _tensors(graph: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for kind in ("input", "output"):
        for spec in graph[f"{kind}s"]:
            yield kind, spec["name"], spec["dtype"], f"({', '.join(map(str, spec['shape']))})"


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield _title(facts)
    for section in _SECTIONS:
        yield f"\n{section}{'' if facts[section] else ': none'}"
        yield from (f"  {name:<26}{value}" for name, value in _settings(facts[section]))
    for name, graph in facts["graphs"].items():
        yield f"\n{name}"
        for kind, tensor, dtype, axes in _tensors(graph):
            yield f"  {kind:<8}{tensor:<34}{dtype:<9}{axes}"
    yield f"\n{_files_title(facts)}"
    yield from (f"  {file['size']:>15,}  {name}" for name, file in facts["files"].items())


def _print_tables(facts: dict[str, Any]) -> None:
    print_lines([_title(facts), ""])
    for section in _SECTIONS:
        if facts[section]:
            print_table((section, ""), _settings(facts[section]))
        else:
            print_lines([f"{section}: none"])
    for name, graph in facts["graphs"].items():
        print_table(("", name, "type", "axes"), _tensors(graph))
    files = [(name, f"{file['size']:,}") for name, file in facts["files"].items()]
    print_table((_files_title(facts), "bytes"), files, right=("bytes",))
