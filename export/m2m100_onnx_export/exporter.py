"""The recipe: load, build the graphs, save, verify, and only then put the bundle in place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from m2m100_onnx import __version__
from m2m100_onnx.bundle import (
    CONFIG_FILE,
    FUSED_FILES,
    GENERATION_CONFIG_FILE,
    GRAPH_FILES,
    MANIFEST_FILE,
    PRECISIONS,
    WEIGHTS_FILE,
    FileRecord,
    Manifest,
    ModelConfig,
    Precision,
    graph_signature,
    read_json,
    sha256_of,
)
from m2m100_onnx.errors import ExportError, InvalidInputError, UnknownLanguageError
from m2m100_onnx.tokenizer import Tokenizer
from m2m100_onnx_export.builder import GraphBuilder, opset_of
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.fused import FusedGraphs
from m2m100_onnx_export.graphs import PortableGraphs
from m2m100_onnx_export.verify import Report, verify
from m2m100_onnx_export.weights import WeightsFile, write_weights

__all__ = ["Export", "export"]

# What transformers' M2M100 checkpoints decode with where they bring no generation_config.json.
_GENERATION_DEFAULTS = {"num_beams": 5, "max_length": 200, "early_stopping": True}
_SPECIAL_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
        bundle: the bundle's folder.
        seconds: time for everything but verification.
        weight_bytes: size of the weights file.
        report: what verification measured, or None if it was not asked for.
    """

    bundle: Path
    seconds: float
    weight_bytes: int
    report: Report | None


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    precision: Precision = "fp32",
    revision: str | None = None,
    languages: Sequence[str] | None = None,
    overwrite: bool = False,
    verify_outputs: bool = True,
    progress: Callable[[str], object] | None = None,
) -> Export:
    """Turns a checkpoint into a bundle that is there whole, or not at all.

    Args:
        checkpoint: a local folder, or a hub id such as `facebook/m2m100_418M`.
        bundle: the folder to make.
        precision: how weights are stored and multiplied, one of `PRECISIONS`; `int4-int8` keeps the
            embedding, which is the LM head too, in eight bits.
        revision: branch, tag or commit on the hub.
        languages: codes the checkpoint was trained on; the runtime then offers these alone.
        overwrite: replace an existing folder.
        verify_outputs: compare the graphs and whole translations with PyTorch.
        progress: is told what is being done, a phrase at a time.

    Raises:
        BundleError: `checkpoint` is no M2M100 checkpoint, or a file of it is damaged.
        ExportError: `bundle` exists, the disk is full, or verification failed.
        InvalidInputError: an argument is out of range.
        UnknownLanguageError: one of `languages` has no token.
    """
    if precision not in PRECISIONS:
        raise InvalidInputError(f"precision: expected {', '.join(PRECISIONS)}, found {precision!r}")
    tell = progress or str
    target = Path(bundle)
    _check_target(target, overwrite=overwrite)
    source = Checkpoint(checkpoint, revision=revision)
    with _workplace(target) as work:
        started = time.perf_counter()
        record = _write(source, work, precision, languages, tell)
        seconds = time.perf_counter() - started
        report = None
        if verify_outputs:
            tell("verifying against PyTorch")
            report = verify(source, work, precision)
            report.raise_if_failed()
        work.chmod(0o755)
        _put_in_place(work, target)
    return Export(target, seconds, record.size, report)


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, so that putting it there is one rename in a file system.

    Of what this makes, nothing stays but what then lies at `target`.
    """
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            yield Path(work)
    except OSError as error:
        raise ExportError(f"{target}: could not write the bundle: {error}") from error
    finally:
        for folder in missing:  # innermost first; one that holds the bundle does not go
            with contextlib.suppress(OSError):
                folder.rmdir()


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise ExportError(f"{target} exists; choose another folder, or ask for --overwrite")
    replaceable = not target.exists() or (
        target.is_dir() and (not any(target.iterdir()) or _is_bundle(target))
    )
    if not replaceable:
        raise ExportError(f"{target} is no bundle, so it is not overwritten; remove it yourself")


def _is_bundle(folder: Path) -> bool:
    # Web pages and browser extensions have a manifest.json too.
    return all((folder / name).exists() for name in (MANIFEST_FILE, *GRAPH_FILES))


def _write(
    source: Checkpoint,
    work: Path,
    precision: Precision,
    languages: Sequence[str] | None,
    tell: Callable[[str], object],
) -> FileRecord:
    """Writes every file of the bundle, the manifest last."""
    for path in source.tokenizer_files():
        shutil.copyfile(path, work / path.name)
    _write_configs(source, work, precision)
    # A check, too, that tokenizer and model fit together.
    tokenizer = Tokenizer(work, embedding_rows=source.config.vocab_size)
    tokenizer.write_table()
    trained = _languages(tokenizer, languages)
    tell("writing weights")
    weights = write_weights(source, work / WEIGHTS_FILE, precision)
    tell("writing graphs")
    # onnxruntime's attention operators for the CPU are float32 only.
    names = GRAPH_FILES if precision == "fp16" else (*GRAPH_FILES, *FUSED_FILES)
    for name in names:
        graph = build_graph(name, source.config, weights, precision)
        onnx.save_model(graph, work / name)
        onnx.checker.check_model(os.fspath(work / name))
    files = {WEIGHTS_FILE: weights.record}
    for path in sorted(work.iterdir()):
        if path.name not in files:
            files[path.name] = FileRecord(path.stat().st_size, sha256_of(path))
    manifest = Manifest(
        precision=precision,
        opset=opset_of(precision),
        source=source.source if source.revision else source.directory.resolve().name,
        revision=source.revision,
        languages=trained,
        exporter_version=__version__,
        graphs={name: graph_signature(name, source.config, precision) for name in names},
        files=files,
    )
    manifest.write(work)
    return weights.record


def build_graph(
    file: str, config: ModelConfig, weights: WeightsFile, precision: Precision
) -> onnx.ModelProto:
    """Builds one graph, by its file name in the bundle.

    Raises:
        BundleError: the checkpoint uses an activation function that no member of the family has.
    """
    fused = file in FUSED_FILES
    graph = GraphBuilder(weights, precision, WEIGHTS_FILE, fused=fused)
    (FusedGraphs if fused else PortableGraphs)(graph, config).build(file)
    return graph.model(file.removesuffix(".onnx"), graph_signature(file, config, precision))


def _write_configs(source: Checkpoint, work: Path, precision: Precision) -> None:
    config = read_json(source.directory / CONFIG_FILE)
    config.pop("torch_dtype", None)
    config["dtype"] = "float16" if precision == "fp16" else "float32"
    path = source.directory / GENERATION_CONFIG_FILE
    if path.is_file():
        generation = read_json(path)
    else:
        kept = {key: config[key] for key in _SPECIAL_IDS if key in config}
        options = {key: config.get(key, value) for key, value in _GENERATION_DEFAULTS.items()}
        generation = {**kept, **options}
    for name, value in ((CONFIG_FILE, config), (GENERATION_CONFIG_FILE, generation)):
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (work / name).write_text(text + "\n", encoding="utf-8")


def _languages(tokenizer: Tokenizer, languages: Sequence[str] | None) -> tuple[str, ...] | None:
    """The trained languages, each of which must have a token."""
    if languages is None:
        return None
    if not languages:
        raise InvalidInputError("languages: expected at least one code, or None for all")
    for code in languages:
        if code not in tokenizer.all_languages:
            raise UnknownLanguageError(code, tokenizer.all_languages)
    return tuple(dict.fromkeys(languages))


def _put_in_place(work: Path, target: Path) -> None:
    """Renames `work` to `target`; an old bundle there is gone only once the new one is in place."""
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(old / target.name)
        work.rename(target)
    except BaseException:
        if not target.exists():
            (old / target.name).rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
