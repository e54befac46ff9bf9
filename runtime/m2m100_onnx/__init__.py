"""Translate between 100 languages with M2M100 on onnxruntime; no torch, no transformers.

from m2m100_onnx import Translator

translator = Translator("path/to/bundle")
print(translator.translate("Open the file.", source_lang="en", target_lang="fr"))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2m100_onnx.bundle import Bundle, Manifest
    from m2m100_onnx.decoding import SearchOptions
    from m2m100_onnx.errors import (
        BundleError,
        DependencyError,
        ExportError,
        InferenceError,
        InputTooLongError,
        InvalidInputError,
        M2M100Error,
        UnknownLanguageError,
    )
    from m2m100_onnx.options import TranslateOptions
    from m2m100_onnx.tokenizer import Tokenizer
    from m2m100_onnx.translator import Hypothesis, Translation, Translator

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "DependencyError",
    "ExportError",
    "Hypothesis",
    "InferenceError",
    "InputTooLongError",
    "InvalidInputError",
    "M2M100Error",
    "Manifest",
    "SearchOptions",
    "Tokenizer",
    "TranslateOptions",
    "Translation",
    "Translator",
    "UnknownLanguageError",
    "__version__",
]

_HOMES = {
    "bundle": ("Bundle", "Manifest"),
    "decoding": ("SearchOptions",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "tokenizer": ("Tokenizer",),
    "options": ("TranslateOptions",),
    "translator": ("Hypothesis", "Translation", "Translator"),
}


def __getattr__(name: str) -> object:
    # Imported at first use: numpy and onnxruntime take half a second that `m2m100 --help` does
    # not need, and an error class must be importable where onnxruntime is missing.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
