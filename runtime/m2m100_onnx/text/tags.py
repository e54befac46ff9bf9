"""Languages of FLORES-200 as users write them: BCP 47 tags, codes of other lists, English names.

A code of FLORES names a language and its script (`srp_Cyrl`), so another name of the same language
can be replaced by it without a loss. `resolve` does so where the meaning is certain, and never
chooses a language or a script that the checkpoint lacks. Other names have `relatives`, for the
message of an error. Knows how tags are built and what CLDR takes for likely. Refuses to know
tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from m2m100_onnx.text.flores import (
    ARABIC_REGIONS,
    LIKELY_SCRIPTS,
    MACROLANGUAGES,
    MEANINGS,
    NAMES,
    SCRIPTS,
    SCRIPTS_OF_REGIONS,
    SHOWN,
)

__all__ = ["called", "has_scripts", "relatives", "resolve"]

_CODE: Final = re.compile(r"[a-z]{2,3}_[A-Z][a-z]{3}")
# Language, extended language, script, region. A tag with more (variants, extensions) says more than
# a code of FLORES can.
_TAG: Final = re.compile(
    r"([a-z]{2,3})(?:[-_]([a-z]{3}))?(?:[-_]([a-z]{4}))?(?:[-_]([a-z]{2}|[0-9]{3}))?", re.IGNORECASE
)
_QUALIFIED: Final = re.compile(r"(.+?) \((.+?)(?: script)?\)")
# A script's first name is the one that is shown.
_SHOWN_SCRIPTS: Final = {code: name.title() for name, code in reversed([*SCRIPTS.items()])}
# ISO 15924 has codes for mixtures that FLORES names by one part.
_SCRIPT_ALIASES: Final = {"Kore": "Hang", "Hrkt": "Jpan", "Aran": "Arab"}


@dataclass(frozen=True)
class _Meaning:
    """What a name says: languages, best first, and perhaps a script and a region."""

    languages: tuple[str, ...]
    script: str | None = None
    region: str | None = None


def has_scripts(supported: Iterable[str]) -> bool:
    """Whether codes are those of FLORES, each with a script."""
    return any(_CODE.fullmatch(code) for code in supported)


def resolve(name: str, supported: Iterable[str]) -> str | None:
    """Returns the supported code that a tag, a code or a name certainly means, else None.

    Args:
        name: such as `en`, `en-US`, `zh-Hant`, `sr_Cyrl`, `ENG_LATN`, `English`,
            `Chinese (Traditional)`.
        supported: the codes of a checkpoint.
    """
    scripts = _scripts(supported)
    meaning = _read(name, scripts)
    if meaning is None or len(meaning.languages) != 1 or _has_own_arabic(meaning, scripts):
        return None
    (language,) = meaning.languages
    available = scripts.get(language, ())
    wanted = meaning.script or SCRIPTS_OF_REGIONS.get(language, {}).get(meaning.region or "")
    if wanted is None:
        wanted = available[0] if len(available) == 1 else LIKELY_SCRIPTS.get(language)
    return f"{language}_{wanted}" if wanted in available else None


def relatives(name: str, supported: Iterable[str]) -> tuple[str, ...]:
    """Returns the supported codes of the languages that a name may mean, best first."""
    scripts = _scripts(supported)
    meaning = _read(name, scripts)
    if meaning is None:
        return ()
    languages = [*meaning.languages]
    if meaning.region in ARABIC_REGIONS and "arb" in languages:
        languages.append(ARABIC_REGIONS[meaning.region or ""])
    for language in meaning.languages:
        languages += MACROLANGUAGES.get(language, ())
    codes = [f"{one}_{s}" for one in dict.fromkeys(languages) for s in scripts.get(one, ())]
    # Of a language's codes, the one with the script that was asked for comes first.
    return tuple(sorted(codes, key=lambda code: not code.endswith(f"_{meaning.script}")))


def called(supported: Iterable[str]) -> dict[str, str]:
    """Returns the English name of each code that has one, with its script where that matters."""
    scripts = _scripts(supported)
    names: dict[str, str] = {}
    for language, name in SHOWN.items():
        for script in scripts.get(language, ()):
            more = f" ({_SHOWN_SCRIPTS.get(script, script)})" if len(scripts[language]) > 1 else ""
            names[f"{language}_{script}"] = name + more
    return names


def _scripts(supported: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the scripts of each language."""
    found: dict[str, tuple[str, ...]] = {}
    for code in supported:
        if _CODE.fullmatch(code):
            language, script = code.split("_")
            found[language] = (*found.get(language, ()), script)
    return found


def _has_own_arabic(meaning: _Meaning, scripts: dict[str, tuple[str, ...]]) -> bool:
    """Whether a tag such as `ar-EG` may mean a variety that the checkpoint has as well."""
    return meaning.languages == ("arb",) and ARABIC_REGIONS.get(meaning.region or "") in scripts


def _read(name: str, scripts: dict[str, tuple[str, ...]]) -> _Meaning | None:
    text = " ".join(name.split())
    match = _TAG.fullmatch(text)
    return (match and _read_tag(match, scripts)) or _read_name(text.lower())


def _read_tag(match: re.Match[str], scripts: dict[str, tuple[str, ...]]) -> _Meaning | None:
    language, extended, script, region = match.groups()
    language = (extended or language).lower()
    script = script and script.title()
    region = region and region.upper()
    languages = MEANINGS.get(f"{language}-{region}") or MEANINGS.get(language)
    if language in scripts or (languages is None and language in SHOWN):
        languages = (language,)
    if languages is None:
        return None
    return _Meaning(languages, _SCRIPT_ALIASES.get(script or "", script), region)


def _read_name(text: str) -> _Meaning | None:
    if text in NAMES:
        return _Meaning(NAMES[text])
    qualified = _QUALIFIED.fullmatch(text)
    name, script = qualified.groups() if qualified else text.partition(" ")[::2][::-1]
    if name in NAMES and script in SCRIPTS:  # "Chinese (Traditional)", "traditional Chinese"
        return _Meaning(NAMES[name], SCRIPTS[script])
    return None
