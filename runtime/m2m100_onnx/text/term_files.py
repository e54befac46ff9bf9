"""Files of terms: lines with tabs between a term and its targets, and TBX.

Knows formats; knows no tokens and no model. TBX is read in all its dialects (ISO 30042:
`conceptEntry` with `langSec` and `termSec`, before 2019 `termEntry` with `langSet` and `tig` or
`ntig`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.text.tags import has_scripts, resolve

__all__ = ["read_terms"]

_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_SECTIONS = ("langSec", "langSet")
_ENTRIES = ("conceptEntry", "termEntry")


def read_terms(
    path: str | os.PathLike[str], source_lang: str, target_lang: str
) -> dict[str, tuple[str, ...]]:
    """Reads terms with their targets, as the argument `terms` of a translating call takes them.

    A file that ends in `.tbx` or `.xml` is TBX. In it the terms of an entry in `target_lang` are
    variants of the target of each of its terms in `source_lang`; a language without a region stands
    for all of its regions. Any other file has lines `term<TAB>target[<TAB>variant...]`; empty
    lines and those that begin with `#` are left out.

    Args:
        path: the file.
        source_lang: the language of the terms.
        target_lang: the language of their targets.

    Returns:
        The variants of the target of each term, as they stand in the file.

    Raises:
        InvalidInputError: the file is not as it must be, or names a term twice.
        OSError: it cannot be read.
    """
    file = Path(path)
    is_tbx = file.suffix.lower() in (".tbx", ".xml")
    pairs = _tbx(file, source_lang, target_lang) if is_tbx else _lines(file)
    found: dict[str, tuple[str, ...]] = {}
    for place, term, targets in pairs:
        if not term.strip() or not targets or not all(map(str.strip, targets)):
            raise InvalidInputError(
                f"{place}: expected a term and its target, found {term!r} and {targets!r}"
            )
        if found.setdefault(term, targets) != targets:
            raise InvalidInputError(
                f"{place}: expected one entry of {term!r}, whose variants stand side by side, "
                f"found {found[term]!r} and {targets!r}"
            )
    if not found:
        languages = f" from {source_lang} to {target_lang}" if is_tbx else ""
        raise InvalidInputError(f"{file}: expected terms{languages}, found none")
    return found


def _lines(file: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file}: expected UTF-8, found {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        term, *targets = line.split("\t")
        yield f"{file}, line {number}", term.strip(), tuple(map(str.strip, targets))


def _tbx(
    file: Path, source_lang: str, target_lang: str
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    data = file.read_bytes()
    if b"<!ENTITY" in data:
        # Entities can make a small file large.
        raise InvalidInputError(f"{file}: expected TBX without entities of its own, found <!ENTITY")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise InvalidInputError(f"{file}: expected TBX, found {error}") from None
    entries = [entry for name in _ENTRIES for entry in root.iterfind(f".//{{*}}{name}")]
    if not entries:
        raise InvalidInputError(f"{file}: expected TBX, found no {' and no '.join(_ENTRIES)}")
    for number, entry in enumerate(entries, 1):
        terms: dict[str, list[str]] = {source_lang: [], target_lang: []}
        for section in (s for name in _SECTIONS for s in entry.iterfind(f".//{{*}}{name}")):
            for language, own in terms.items():
                if _same(section.get(_LANGUAGE) or "", language):
                    own += [
                        "".join(term.itertext()).strip() for term in section.iterfind(".//{*}term")
                    ]
        targets = tuple(terms[target_lang])
        if targets:
            place = f"{file}, entry {number}"
            yield from ((place, term, targets) for term in terms[source_lang])


def _same(tag: str, language: str) -> bool:
    """Whether a tag such as `de-AT` is of a language such as `de` or `deu_Latn`."""
    if has_scripts([language]):
        return resolve(tag, [language]) == language
    tag, language = (name.lower().replace("_", "-") for name in (tag, language))
    return tag == language or tag.startswith(f"{language}-") or language.startswith(f"{tag}-")
