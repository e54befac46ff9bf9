"""Words of a text as XLM's training data has them: punctuation, Moses' tokenizer, case and accents.

Reference: the steps of transformers' `tokenization_xlm.py` (5.x), which ports the scripts of
facebookresearch/XLM. `sacremoses` tokenizes; Chinese and Thai need a segmenter of their own.
Refuses to know pieces and ids.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from typing import Any, Final

from m2m100_onnx.errors import DependencyError, InvalidInputError

__all__ = ["Words"]

# Source: Moses' replace-unicode-punctuation.perl.
_MARKS: Final = str.maketrans(
    {
        **dict(zip("０１２３４５６７８９", "0123456789", strict=True)),
        **dict(zip("，、∶：？！；～’━％", ",,::?!;~'-%", strict=True)),
        **dict(zip("（）〈〉【】", "()<>[]", strict=True)),
        **dict.fromkeys("”“《》」「", '"'),
        "…": "...",
    }
)
_FULL_STOP: Final = re.compile(r"[。．]\s*")
# Source: normalise-romanian.py and remove-diacritics.py of Sennrich's WMT16 scripts.
_ROMANIAN: Final = str.maketrans("ŞşŢţȘșȚțĂăÂâÎî", "SsTtSsTtAaAaIi")
_SEGMENTERS: Final = {"zh": "rjieba", "th": "pythainlp.tokenize"}


class Words:
    """Splits text into words; one instance serves all languages, and many threads.

    A pickled copy makes its Moses objects anew.
    """

    def __init__(self, *, lowercase: bool) -> None:
        """Imports nothing yet.

        Args:
            lowercase: whether words lose their case and their accents.
        """
        self._lowercase = lowercase
        self._moses: dict[str, tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_lowercase": self._lowercase, "_moses": {}}

    def split(self, text: str, language: str) -> list[str]:
        """Returns the words of a text.

        Args:
            text: any text.
            language: a code such as `en`, which Moses' rules depend on.

        Raises:
            DependencyError: sacremoses, or the segmenter of the language, is not installed.
            InvalidInputError: the language is Japanese, whose segmenter needs a model of its own.
        """
        words = self._words(text, language)
        if self._lowercase:
            words = _without_accents(" ".join(words).lower()).lower().split(" ")
        return [word for word in words if word]

    def _words(self, text: str, language: str) -> list[str]:
        if language == "ja":
            raise InvalidInputError(
                "language: Japanese is segmented by KyTea with a model of its own; segment the "
                "text yourself and pass pretokenized=True"
            )
        normalizer, tokenizer = self._tools(language)
        if language == "zh":
            text = " ".join(_module(language).cut(text))
        text = _FULL_STOP.sub(". ", text.translate(_MARKS))
        text = normalizer.normalize(text)
        text = "".join(c for c in text if not unicodedata.category(c).startswith("C"))
        if language == "zh":
            return text.split()
        if language == "th":
            return list(_module(language).word_tokenize(text))
        if language == "ro":
            text = text.translate(_ROMANIAN)
        found: list[str] = tokenizer.tokenize(text, return_str=False, escape=False)
        return found

    def _tools(self, language: str) -> tuple[Any, Any]:
        """Returns Moses' punctuation normalizer and tokenizer of a language."""
        if language not in self._moses:
            try:
                sacremoses = importlib.import_module("sacremoses")
            except ImportError as error:
                raise DependencyError(
                    f"the text of XLM is tokenized by sacremoses ({error}); "
                    "run `pip install 'm2m100-onnx[xlm]'`"
                ) from error
            self._moses[language] = (
                sacremoses.MosesPunctNormalizer(lang=language),
                sacremoses.MosesTokenizer(lang=language),
            )
        return self._moses[language]


def _module(language: str) -> Any:
    name = _SEGMENTERS[language]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DependencyError(
            f"text in {language} is segmented by {package} ({error}); run `pip install {package}`, "
            "or segment it yourself and pass pretokenized=True"
        ) from error


def _without_accents(text: str) -> str:
    parts = unicodedata.normalize("NFD", text)
    return "".join(c for c in parts if unicodedata.category(c) != "Mn")
