"""Language codes as users write them: finds the supported codes that another one may stand for.

No code of M2M100 replaces another in silence: "zh-Hant" would become simplified Chinese and
"sr-Latn" Cyrillic. So a wrong code is an error, and these are the suggestions in it. Codes with a
script, those of NLLB, do replace tags and names: see `tags`. Knows how codes are mistaken for each
other. Tables are imported where they are read, since a program that starts with right codes needs
none. Refuses to know tokens and ids.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.errors import UnknownLanguageError

__all__ = ["names_of", "resolve_language", "suggest", "unknown_language"]

# Country codes. By spelling alone, the nearest code to `jp` is `pt`.
_COUNTRIES: Final = {
    "cn": "zh",
    "cz": "cs",
    "dk": "da",
    "gr": "el",
    "jp": "ja",
    "kr": "ko",
    "se": "sv",
    "ua": "uk",
    "vn": "vi",
}
_LONGEST_CODE: Final = 4


def suggest(code: object, supported: Iterable[str]) -> tuple[str, ...]:
    """Returns up to three supported codes that `code` may stand for, best first.

    Understands capitals, regions and scripts (`en-US`, `eng_Latn`), codes of ISO 639-3 and older
    ones, and English names; with langcodes (`pip install 'm2m100-onnx[langs]'`) also names in other
    languages and near relatives.
    """
    from m2m100_onnx.text.tags import has_scripts

    choices = list(supported)
    if has_scripts(choices):
        return _with_scripts(str(code), choices)
    folded = str(code).strip().strip("_").replace("-", "_").lower()
    for meant in _meanings(folded):
        # What the code means is clear. If it is not supported, a code of like spelling is no help.
        return tuple(choice for choice in meant if choice in choices)[:3]
    if meant := _by_langcodes(folded, choices):
        return meant
    if len(folded) > _LONGEST_CODE:
        near = difflib.get_close_matches(folded, _names(), n=1, cutoff=0.88)
        return tuple(choice for choice in _names()[near[0]] if choice in choices) if near else ()
    return tuple(difflib.get_close_matches(folded, choices, n=3, cutoff=0.5))


def _with_scripts(name: str, choices: list[str]) -> tuple[str, ...]:
    """Returns up to three codes of FLORES that a name may stand for."""
    from m2m100_onnx.text.flores import NAMES
    from m2m100_onnx.text.tags import relatives

    if found := relatives(name, choices):
        return found[:3]
    folded = name.strip().lower()
    if found := _by_langcodes(folded, choices):
        return found
    if near := difflib.get_close_matches(folded, NAMES, n=1, cutoff=0.88):
        return relatives(near[0], choices)[:3]
    return tuple(difflib.get_close_matches(name, choices, n=3, cutoff=0.7))


def resolve_language(name: object, supported: Collection[str]) -> str | None:
    """Returns the supported code that a name certainly means, else None.

    Args:
        name: a code; where the codes have scripts, as those of NLLB, also a tag or an English name.
        supported: the codes of a checkpoint.
    """
    if name in supported:
        return str(name)
    if not isinstance(name, str):
        return None
    from m2m100_onnx.text.tags import resolve

    return resolve(name, supported)


def names_of(codes: Iterable[str]) -> dict[str, str]:
    """Returns the English name of each code that has one."""
    from m2m100_onnx.text.language_names import SHOWN
    from m2m100_onnx.text.tags import called

    given = tuple(codes)
    return {code: SHOWN[code] for code in given if code in SHOWN} | called(given)


def _meanings(folded: str) -> Iterator[tuple[str, ...]]:
    """Yields the codes of M2M100 that a code or name stands for, if it is one."""
    from m2m100_onnx.text.language_names import MEANINGS, NAMES

    words = re.split(r"[\W_]+", folded)
    for candidate in (folded, words[0]):
        if candidate in FAMILIES["m2m100"].languages:
            yield (candidate,)
        if candidate in _COUNTRIES:
            yield (_COUNTRIES[candidate],)
        for table in (MEANINGS, NAMES):
            if candidate in table:
                yield table[candidate]
    if words[-1] in NAMES:  # "simplified Chinese"
        yield NAMES[words[-1]]


def _names() -> dict[str, tuple[str, ...]]:
    from m2m100_onnx.text.language_names import NAMES

    return dict(NAMES)


def _by_langcodes(folded: str, choices: list[str]) -> tuple[str, ...]:
    """Returns what langcodes makes of a tag or a name; nothing where it is not installed."""
    try:
        langcodes: Any = importlib.import_module("langcodes")
    except ImportError:
        return ()
    # ImportError: names need its package language_data, which may be missing.
    try:
        is_tag = folded.isascii() and (len(folded) <= _LONGEST_CODE or "_" in folded)
        tag = folded if is_tag else _found(langcodes, folded)
        match = langcodes.closest_supported_match(tag, choices)
    except (LookupError, ValueError, ImportError):
        return ()
    return (str(match),) if match else ()


def _found(langcodes: Any, name: str) -> str:
    """Returns the tag of a language's name.

    Raises:
        LookupError: no language has that name.
    """
    return str(langcodes.find(name).language)


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
