"""The `m2m100` command: arguments, files, terminals, pipes and exit statuses (see `_STATUSES`).

Knows no tokens and no tensors. What a command needs is imported when it runs: `--help` needs none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from m2m100_onnx import cli_cache
from m2m100_onnx.bundle import FUSED_FILES, GRAPH_FILES, PRECISIONS, Bundle
from m2m100_onnx.cli_files import open_output, print_lines, progress
from m2m100_onnx.errors import (
    BundleError,
    DependencyError,
    ExportError,
    InvalidInputError,
    M2M100Error,
)

if TYPE_CHECKING:
    from m2m100_onnx.translator import Translation, Translator

__all__ = ["main"]

_STATUSES = """\
exit status:
  0    done
  1    an export or a verification failed, or the output could not be written
  2    arguments, language codes, input, bundle or installation: mend and try again
  130  interrupted (what a shell reports for SIGINT)
  141  the reader of the output went away (what it reports for SIGPIPE)"""
_STOPPING = {"true": True, "false": False, "never": "never"}
_LINE_END = re.compile(rb"\r?\n\Z")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
# Each has the name and meaning it has in TranslateOptions.
_SEARCH_OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("beam-size", int, "hypotheses kept a sentence; 1 is greedy search"),
    ("num-hypotheses", int, "how many --json prints; without --json only the best is printed"),
    ("max-length", int, "most tokens of a translation, start and language token included"),
    ("min-length", int, "fewest tokens of a translation before its end, counted likewise"),
    ("length-penalty", float, "above 0 favours longer translations"),
    ("no-repeat-ngram-size", int, "no token sequence of this length comes twice; 0 allows all"),
    ("repetition-penalty", float, "above 1 makes used tokens less likely"),
    ("max-batch-tokens", int, "a batch: sentences * beam size * longest source"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `m2m100` command on `argv`, or the process's arguments; returns its exit status.

    Raises:
        SystemExit: from argparse, after `--help`, `--version` (0) or a wrong argument (2).
    """
    if sys.stderr is None:
        # Closed, as in some daemons; `print` would write to standard output instead.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    if not sys.stdout:
        return _complain(InvalidInputError("standard output is closed"), 2)
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _settle_stdout()
        return 141
    except M2M100Error as error:
        return _complain(error, 1 if isinstance(error, ExportError) else 2)
    except OSError as error:
        _settle_stdout()
        return _complain(error, 1)
    return status


def _complain(error: Exception, status: int) -> int:
    with contextlib.suppress(OSError):
        # onnxruntime's messages have several lines; scripts count on one.
        print("m2m100: error:", " ".join(str(error).split("\n")), file=sys.stderr)
    return status


def _settle_stdout() -> None:
    """Writes what is buffered, or drops it: at its end the interpreter would fail at it again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    from m2m100_onnx import __version__, cli_benchmark

    parser = argparse.ArgumentParser(
        prog="m2m100",
        description="Translate between 100 languages with M2M100 on onnxruntime.",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"m2m100 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[..., int], about: str) -> Callable[..., argparse.Action]:
        name = run.__name__.strip("_")
        added = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        added.set_defaults(run=run)
        return added.add_argument

    _add_translate(command(_translate, "Translate lines of text."))

    add = command(_languages, "List the languages a bundle translates.")
    add("--model", required=True, metavar="BUNDLE", help="the bundle's folder")
    add("--all", action="store_true", help="also those it has a token for and was not trained on")
    add("--json", action="store_true", help="print JSON")

    add = command(_info, "Say what a bundle is and holds.")
    add("bundle", metavar="BUNDLE", help="the bundle's folder")
    add("--verify", action="store_true", help="compare every file's SHA-256 with the manifest's")
    add("--json", action="store_true", help="print JSON")

    cli_cache.add_cache_arguments(command(cli_cache.cache, "List, verify or clear packed graphs."))

    add = command(_export, "Turn a checkpoint into a bundle.")
    add("checkpoint", metavar="CHECKPOINT", help="a folder, or a hub id: facebook/m2m100_418M")
    add("bundle", metavar="BUNDLE", help="the folder to make")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the weights (default: fp32)")
    add("--revision", metavar="R", help="branch, tag or commit on the hub")
    add("--languages", metavar="en,de,...", help="codes the checkpoint was trained on")
    add("--overwrite", action="store_true", help="replace an existing bundle")
    add("--no-verify", action="store_true", help="do not compare the bundle with PyTorch")

    cli_benchmark.add_parser(commands)
    return parser


def _add_translate(add: Callable[..., argparse.Action]) -> None:
    add("texts", nargs="*", metavar="TEXT", help="texts to translate, in place of --input")
    add("--model", required=True, metavar="BUNDLE", help="the bundle's folder")
    add("--source-lang", required=True, metavar="CODE", help="language of the input, such as en")
    add("--target-lang", required=True, metavar="CODE", help="language to translate into")
    add("--input", metavar="FILE", help="UTF-8, a text a line (default: standard input)")
    add("--output", metavar="FILE", help="replaced once all is done (default: standard output)")
    add("--json", action="store_true", help="a JSON object a line, with scores and tokens")
    # Left out, they are not there at all, and the bundle's own settings count.
    for name, kind, about in _SEARCH_OPTIONS:
        add(f"--{name}", type=kind, metavar="N", help=about, default=argparse.SUPPRESS)
    about = "end at BEAM_SIZE hypotheses; when none is likely, or able, to be better"
    add("--early-stopping", choices=_STOPPING, help=about, default=argparse.SUPPRESS)
    add("--truncate", action="store_true", help="cut texts that are too long, instead of failing")
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    add("--threads", type=int, metavar="N", help="threads inside an operator (default: all cores)")
    cli_cache.add_cache_options(add)
    about = "lines read before the first is answered (default: 256; typed on a terminal, always 1)"
    add("--read-ahead", type=int, default=256, metavar="N", help=about)


def _translate(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.options import TranslateOptions
    from m2m100_onnx.translator import Translator

    if arguments.texts and arguments.input is not None:
        raise InvalidInputError("expected texts or --input, found both")
    values = vars(arguments)
    languages = {name: values[name] for name in ("source_lang", "target_lang")}
    options = {name: values[name] for name in TranslateOptions.__annotations__ if name in values}
    if "early_stopping" in options:
        options["early_stopping"] = _STOPPING[arguments.early_stopping]
    # Lazy, since opening the graphs takes seconds and arguments may yet turn out to be wrong.
    session = {"device": arguments.device, "intra_op_num_threads": arguments.threads}
    translator = Translator(arguments.model, cache_dir=arguments.cache_dir, lazy=True, **session)
    for code in languages.values():
        translator.tokenizer.language_id(code)
    with _input(arguments) as source, open_output(arguments.output) as output:
        # Someone who types waits for the answer to each line.
        ahead = 1 if not isinstance(source, list) and source.isatty() else arguments.read_ahead
        waiting: deque[tuple[str, int]] = deque()
        errors: list[M2M100Error] = []
        texts = _read(source, translator, arguments, waiting, errors)
        # Refuses wrong options at once, and reads nothing until its first result is asked for.
        found = translator.translate_iterable(texts, read_ahead=ahead, **languages, **options)
        translator.model.load()
        with progress(source, output) as advance:
            for count, translation in enumerate(found, 1):
                text, size = waiting.popleft()
                output.write(_line(text, translation, languages if arguments.json else None))
                if count % ahead == 0:
                    output.flush()
                advance(size)
        output.flush()
        if errors:
            raise errors[0]
    return 0


def _line(text: str, translation: Translation, languages: dict[str, str] | None) -> bytes:
    """A line of output, in JSON if `languages` are given."""
    # A vocabulary may hold a line break, and one line more would shift all that follow.
    line = _LINE_BREAK.sub(" ", translation.text)
    if languages:
        line = json.dumps({"source": text, **languages, **asdict(translation)}, ensure_ascii=False)
    return line.encode() + b"\n"


def _read(
    source: Iterable[str | bytes],
    translator: Translator,
    arguments: argparse.Namespace,
    waiting: deque[tuple[str, int]],
    errors: list[M2M100Error],
) -> Iterator[str]:
    """Yields the texts of an input, up to the first that cannot be translated.

    Reading is ahead of writing: a text is left in `waiting` with its size in bytes, and what is
    wrong with the first bad one in `errors`, so that those before it are still written.
    """
    for number, raw in enumerate(source, 1):
        try:
            # `splitlines` would also split at U+2028 and others, which are part of the text.
            text = raw if isinstance(raw, str) else _LINE_END.sub(b"", raw).decode()
            # One that is too long fails everything read along with it, and names no line.
            translator.encode(text, arguments.source_lang, truncate=arguments.truncate)
        except (M2M100Error, UnicodeDecodeError) as error:
            place = "text" if isinstance(raw, str) else "line"
            errors.append(InvalidInputError(f"{place} {number}: {error}"))
            return
        waiting.append((text, len(raw)))
        yield text


def _input(given: argparse.Namespace) -> contextlib.AbstractContextManager[list[str] | BinaryIO]:
    if given.texts:
        return contextlib.nullcontext(list(map(str, given.texts)))
    if given.input not in (None, "-"):
        try:
            return Path(given.input).open("rb")
        except OSError as error:
            raise InvalidInputError(f"cannot read {given.input}: {error.strerror}") from None
    if not sys.stdin:
        raise InvalidInputError("standard input is closed")
    return contextlib.nullcontext(sys.stdin.buffer)


def _languages(arguments: argparse.Namespace) -> int:
    from m2m100_onnx.tokenizer import Tokenizer

    bundle = Bundle.open(arguments.model)
    trained = bundle.manifest.languages if bundle.manifest else None
    rows = bundle.config.vocab_size
    tokenizer = Tokenizer(bundle.directory, embedding_rows=rows, trained_languages=trained)
    codes = tokenizer.all_languages if arguments.all else tokenizer.languages
    entries = [{"code": code, "trained": code in tokenizer.languages} for code in codes]
    lines = [code if code in tokenizer.languages else f"{code}\tuntrained" for code in codes]
    print_lines([json.dumps(entries)] if arguments.json else lines)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    if arguments.verify:
        try:
            bundle.verify()
        except BundleError as error:
            return _complain(error, 1 if bundle.manifest else 2)
    manifest = asdict(bundle.manifest) if bundle.manifest else {"files": {}, "graphs": {}}
    records, graphs = manifest.pop("files"), manifest.pop("graphs")
    files = {
        path.name: {"sha256": None, **records.get(path.name, {}), "size": path.stat().st_size}
        for path in sorted(bundle.directory.iterdir())
        if path.is_file()
    }
    names = (*GRAPH_FILES, *(FUSED_FILES if bundle.has_fused_graphs else ()))
    facts = {
        "bundle": os.fspath(bundle.directory),
        "precision": bundle.precision,
        "total_size": sum(file["size"] for file in files.values()),
        "verified": arguments.verify,
        "manifest": manifest or None,
        "model": asdict(bundle.config),
        "generation": dict(bundle.generation),
        "graphs": {name: graphs.get(name, asdict(bundle.signature(name))) for name in names},
        "files": files,
    }
    print_lines([json.dumps(facts, ensure_ascii=False)] if arguments.json else _facts_lines(facts))
    return 0


def _facts_lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['bundle']}: {facts['precision']}, {facts['total_size']:,} bytes"
    for section in ("manifest", "model", "generation"):
        yield f"\n{section}{'' if facts[section] else ': none'}"
        for name, value in (facts[section] or {}).items():
            shown = " ".join(value) if isinstance(value, tuple) else value
            yield f"  {name:<26}{'not given' if value is None else shown}"
    for name, graph in facts["graphs"].items():
        yield f"\n{name}"
        for kind in ("input", "output"):
            for spec in graph[f"{kind}s"]:
                axes = ", ".join(map(str, spec["shape"]))
                yield f"  {kind:<8}{spec['name']:<34}{spec['dtype']:<9}({axes})"
    yield f"\nfiles{', every SHA-256 that of the manifest' if facts['verified'] else ''}"
    yield from (f"  {file['size']:>15,}  {name}" for name, file in facts["files"].items())


def _export(arguments: argparse.Namespace) -> int:
    try:
        # By name and at run time, since a service has the runtime alone: nothing of the runtime
        # may import the exporter, and this one command can say what to install.
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
        overwrite=arguments.overwrite,
        verify_outputs=not arguments.no_verify,
        progress=lambda message: print(message, file=sys.stderr, flush=True),
    )
    size = sum(path.stat().st_size for path in result.bundle.iterdir())
    lines = [f"bundle: {result.bundle}", f"size: {size:,} bytes", f"seconds: {result.seconds:.1f}"]
    print_lines([*lines, *(result.report.lines() if result.report else ["not verified"])])
    return 0
