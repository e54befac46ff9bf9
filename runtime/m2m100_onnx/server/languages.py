"""Languages as clients of other systems write them, and the bundle that has a pair of them.

Knows the codes of LibreTranslate and DeepL. A code that would change the script is no alias:
`zh-Hant` is not `zh`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from m2m100_onnx.server.engine import Served
from m2m100_onnx.server.refusals import Refused
from m2m100_onnx.text.languages import names_of, resolve_language

__all__ = ["all_codes", "as_shown", "choose", "deepl_codes", "name_of", "supported_code"]

_ALIASES = {
    "zh-hans": "zh",
    "zh-cn": "zh",
    "zh-sg": "zh",
    "nb": "no",
    "pb": "pt",
    "pt-br": "pt",
    "pt-pt": "pt",
    "en-us": "en",
    "en-gb": "en",
    "es-419": "es",
}
_SHOWN = {"zh": "zh-Hans"}
# DeepL's target languages have regions, and its client refuses two of them without.
_DEEPL_TARGETS = {"en": ("EN-GB", "EN-US"), "pt": ("PT-BR", "PT-PT"), "zh": ("ZH", "ZH-HANS")}


def supported_code(name: str, supported: Collection[str]) -> str | None:
    """Returns the supported code that a client's code means, else None."""
    folded = name.strip().replace("_", "-").lower()
    by_folded = {code.replace("_", "-").lower(): code for code in supported}
    for meant in (folded, _ALIASES.get(folded, folded)):
        if meant in by_folded:
            return by_folded[meant]
    return resolve_language(name, supported)


def as_shown(code: str) -> str:
    """Returns a code as LibreTranslate writes it."""
    return _SHOWN.get(code, code)


def name_of(code: str) -> str:
    """Returns a language's English name; its code where it has none."""
    return names_of([code]).get(code, code)


def all_codes(served: Sequence[Served]) -> tuple[str, ...]:
    """Returns the codes of all bundles, in order and once."""
    return tuple(dict.fromkeys(code for each in served for code in each.translator.languages))


def deepl_codes(code: str, *, target: bool) -> tuple[str, ...]:
    """Returns a code as DeepL lists it among the source or the target languages."""
    return _DEEPL_TARGETS.get(code, (code.upper(),)) if target else (code.upper(),)


def choose(
    served: Sequence[Served], source: str, target: str, model: str | None = None
) -> tuple[Served, str, str]:
    """Returns the first bundle that has two languages, and their codes in it.

    Args:
        served: the bundles.
        source: the language of the texts, as the client writes it.
        target: the language to translate into.
        model: the name of a bundle; any may be taken without it.

    Raises:
        Refused: no bundle has one of the languages, none has both, or none has that name.
    """
    possible = [each for each in served if model in (None, each.name)]
    if not possible:
        names = ", ".join(each.name for each in served)
        raise Refused("bad_request", f"model: expected one of {names}, found {model}")
    for each in possible:
        codes = each.translator.languages
        source_code, target_code = supported_code(source, codes), supported_code(target, codes)
        if source_code and target_code:
            return each, source_code, target_code
    for name in (source, target):
        if not any(supported_code(name, each.translator.languages) for each in possible):
            raise Refused("bad_request", f"{name} is not supported")
    raise Refused(
        "bad_request",
        f"{name_of(target)} ({target}) is not available as a target language from "
        f"{name_of(source)} ({source})",
    )
