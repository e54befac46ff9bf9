"""Language codes as users write them: finds the supported code that a wrong one may stand for.

Knows how codes are mistaken for each other. Refuses to know tokens and ids.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final

from m2m100_onnx.errors import UnknownLanguageError

__all__ = ["suggest", "unknown_language"]

# Country codes and older language codes. By spelling alone, the nearest code to `jp` is `pt`.
_OFTEN_MEANT: Final = {
    "cn": "zh",
    "cz": "cs",
    "dk": "da",
    "gr": "el",
    "iw": "he",
    "jp": "ja",
    "kr": "ko",
    "nb": "no",
    "se": "sv",
    "ua": "uk",
    "vn": "vi",
}

_LONGEST_CODE: Final = 4


def suggest(code: object, supported: Iterable[str]) -> tuple[str, ...]:
    """Returns up to three supported codes that `code` may stand for, best first."""
    choices = list(supported)
    folded = str(code).strip().strip("_").replace("-", "_").lower()
    # A code in capitals or with a region ("EN", "en-US") has one meaning.
    for candidate in (folded, folded.split("_")[0], _OFTEN_MEANT.get(folded)):
        if candidate in choices:
            return (candidate,)
    if len(folded) > _LONGEST_CODE:
        return ()  # A name, such as "german", is near to codes of other languages.
    return tuple(difflib.get_close_matches(folded, choices, n=3, cutoff=0.5))


def unknown_language(
    code: object, supported: Iterable[str], known: Collection[str] = ()
) -> UnknownLanguageError:
    """Returns the error about a language that is not supported, with near matches.

    Args:
        code: the language as the caller gave it.
        supported: the codes that the caller may use.
        known: the codes that have a token, whether the checkpoint was trained on them or not.
    """
    choices = tuple(supported)
    untrained = isinstance(code, str) and code in known and code not in choices
    return UnknownLanguageError(code, choices, suggest(code, choices), untrained)
