"""Translate between 100 languages with M2M100 on onnxruntime; no torch, no transformers.

from m2m100_onnx import Translator

translator = Translator("path/to/bundle")
print(translator.translate("Open the file.", source_lang="en", target_lang="fr"))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2m100_onnx.bundle.bundle import Bundle
    from m2m100_onnx.bundle.manifest import Manifest
    from m2m100_onnx.engine.stats import Stats
    from m2m100_onnx.engine.stopping import Cancellation
    from m2m100_onnx.errors import (
        BundleError,
        Cancelled,
        ClosedError,
        DeadlineExceeded,
        DependencyError,
        ExportError,
        InferenceError,
        InputTooLongError,
        InvalidInputError,
        JobError,
        M2M100Error,
        OverloadedError,
        StoppedError,
        UnknownLanguageError,
    )
    from m2m100_onnx.language_model import LanguageModel
    from m2m100_onnx.options import OPTIONS, SearchOptions, TranslateOptions
    from m2m100_onnx.pipelines import pipeline
    from m2m100_onnx.pool import TranslatorPool
    from m2m100_onnx.rerank import Reranker
    from m2m100_onnx.scores import Filling, Generation, Score
    from m2m100_onnx.text.term_files import read_terms
    from m2m100_onnx.text.tokenizer import Tokenizer
    from m2m100_onnx.translation import (
        Alignment,
        AlignmentHeads,
        Alternative,
        Hypothesis,
        Translation,
    )
    from m2m100_onnx.translator import Translator

__version__ = "0.1.0"

__all__ = [
    "OPTIONS",
    "Alignment",
    "AlignmentHeads",
    "Alternative",
    "Bundle",
    "BundleError",
    "Cancellation",
    "Cancelled",
    "ClosedError",
    "DeadlineExceeded",
    "DependencyError",
    "ExportError",
    "Filling",
    "Generation",
    "Hypothesis",
    "InferenceError",
    "InputTooLongError",
    "InvalidInputError",
    "JobError",
    "LanguageModel",
    "M2M100Error",
    "Manifest",
    "OverloadedError",
    "Reranker",
    "Score",
    "SearchOptions",
    "Stats",
    "StoppedError",
    "Tokenizer",
    "TranslateOptions",
    "Translation",
    "Translator",
    "TranslatorPool",
    "UnknownLanguageError",
    "__version__",
    "pipeline",
    "read_terms",
]

_ERRORS = ("Cancelled", "DeadlineExceeded", *(n for n in __all__ if n.endswith("Error")))
_HOMES = {
    "bundle.bundle": ("Bundle",),
    "bundle.manifest": ("Manifest",),
    "engine.stats": ("Stats",),
    "engine.stopping": ("Cancellation",),
    "errors": _ERRORS,
    "language_model": ("LanguageModel",),
    "options": ("OPTIONS", "SearchOptions", "TranslateOptions"),
    "pipelines": ("pipeline",),
    "pool": ("TranslatorPool",),
    "rerank": ("Reranker",),
    "scores": ("Filling", "Generation", "Score"),
    "text.term_files": ("read_terms",),
    "text.tokenizer": ("Tokenizer",),
    "translation": ("Alignment", "AlignmentHeads", "Alternative", "Hypothesis", "Translation"),
    "translator": ("Translator",),
}


def __getattr__(name: str) -> object:
    # Each name is imported at its first use. numpy and onnxruntime take half a second, which
    # `m2m100 --help` does not need; and errors can be imported where onnxruntime is missing.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
