"""The recipe of an export: load, write, verify, and only then put the bundle in place.

Knows the order of the work, and which recipe a checkpoint's architecture has. Refuses to know
tensors and nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2m100_onnx.bundle.config import CONFIG_FILE, read_json
from m2m100_onnx.bundle.graphs import PRECISIONS, Precision
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx_export.language_model import LanguageModelRecipe
from m2m100_onnx_export.place import Place
from m2m100_onnx_export.tensors import Source
from m2m100_onnx_export.translation import TranslationRecipe
from m2m100_onnx_export.verify import Report

__all__ = ["Export", "export"]


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        bundle: the bundle's folder.
        seconds: time of the export without verification.
        weight_bytes: size of the weights file.
        report: what verification measured, or None without verification.
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
    family: str | None = None,
    causal: bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify_outputs: bool = True,
    progress: Callable[[str], object] | None = None,
) -> Export:
    """Exports a checkpoint to a bundle, whole or not at all.

    Args:
        checkpoint: a local folder, or a hub id such as `facebook/m2m100_418M`.
        bundle: the folder to write.
        precision: how weights are stored and multiplied, one of `PRECISIONS`. `int4-int8` keeps
            eight bits in the embedding, which is also the LM head.
        revision: branch, tag or commit on the hub.
        languages: the languages that the checkpoint was trained on. The runtime then accepts no
            other.
        family: a name in `FAMILIES`, for a checkpoint whose files do not tell it: `small100` for
            SMaLL-100 with the tokenizer files of M2M100. None takes what the files tell.
        causal: whether the tokens of a language model see earlier tokens alone. None takes what
            config.json says, where published causal checkpoints are silent.
        adapter: the folder of a LoRA or DoRA adapter of a translation model, as PEFT saves it. Its
            weights are merged into the bundle's.
        overwrite: replaces an existing bundle.
        verify_outputs: compares the graphs and whole translations with PyTorch.
        progress: receives a phrase at the start of each stage.

    Raises:
        BundleError: `checkpoint` is neither of M2M100 nor of XLM, one of its files is damaged, or
            `adapter` is no adapter of it.
        ExportError: `bundle` exists, the disk is full, or verification failed.
        InvalidInputError: an argument is out of range.
        UnknownLanguageError: one of `languages` has no token.
    """
    if precision not in PRECISIONS:
        raise InvalidInputError(f"precision: expected {', '.join(PRECISIONS)}, found {precision!r}")
    tell = progress or (lambda _: None)
    target = Path(bundle)
    place = Place.of(target, overwrite=overwrite)
    source = Source.find(checkpoint, revision)
    recipe: LanguageModelRecipe | TranslationRecipe
    if read_json(source.directory / CONFIG_FILE).get("model_type") == "xlm":
        _refuse("a language model", languages=languages, family=family, adapter=adapter)
        recipe = LanguageModelRecipe(source, precision, causal=causal)
    else:
        _refuse("a translation model", causal=causal)
        recipe = TranslationRecipe(
            source, precision, languages=languages, family=family, adapter=adapter
        )
    with place.workplace() as work:
        started = time.perf_counter()
        record = recipe.write(work, tell)
        seconds = time.perf_counter() - started
        report = None
        if verify_outputs:
            tell("verifying against PyTorch")
            report = recipe.verify(work)
            report.raise_if_failed()
        place.put(work)
    return Export(target, seconds, record.size, report)


def _refuse(kind: str, **arguments: object) -> None:
    """Raises `InvalidInputError` if an argument is given that a kind of model does not have."""
    for name, value in arguments.items():
        if value is not None:
            raise InvalidInputError(f"{name}: expected none for {kind}, found {value!r}")
