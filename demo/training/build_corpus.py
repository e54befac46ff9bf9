#!/usr/bin/env python3
"""Builds the multiway table from what fetch.sh unpacked: one row per English string.

Writes WORK/rows.jsonl: {"en": …, "de": …, …, "_src": source tag}. The rows have the order of the
sources below. If two sources translate the same English string, the earlier one wins.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import readers
from cleaning import aligned_pieces, is_good_pair
from sources import DEFAULT_WORK, is_excluded

TRANSLATED = ("de", "fr", "es", "ru", "zh")
SPELLINGS = {
    "de": ("de", "de_DE"),
    "fr": ("fr", "fr_FR"),
    "es": ("es", "es_ES"),
    "ru": ("ru", "ru_RU"),
    "zh": ("zh_CN", "zh-CN", "zh_Hans", "zh-Hans", "zh-hans"),
}
LOCALES = {spelling: lang for lang, spellings in SPELLINGS.items() for spelling in spellings}
"""Language of a locale folder or file. "zh" is left out, because it may be traditional Chinese."""

HANDBOOK_LOCALES = {"de-DE": "de", "fr-FR": "fr", "es-ES": "es", "ru-RU": "ru", "zh-CN": "zh"}
DICTIONARIES = {"eng-fra": "fr", "eng-spa": "es", "eng-rus": "ru", "fra-eng": "fr", "spa-eng": "es"}
GAMES = ("wesnoth-1.16-data", "freedroidrpg-data", "widelands-data", "fillets-ng-data")


class Table:
    """The multiway table under construction, and counts of what it accepted and rejected.

    Attributes:
        rows: translations by language, by English string.
        origin: the source that first gave an English string.
        accepted: number of translations, by (source, language).
        rejected: number of pairs that `is_good_pair` rejected.
        unaligned_documents: number of document pairs whose structures differ.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}
        self.origin: dict[str, str] = {}
        self.accepted: Counter[tuple[str, str]] = Counter()
        self.rejected = 0
        self.unaligned_documents = 0

    def add(self, pairs: Iterable[tuple[str, str]], lang: str, source: str) -> None:
        """Adds aligned units, cleaned and cut into sentences. Skips excluded sources."""
        if is_excluded(source):
            return
        for unit in pairs:
            for english, translation in aligned_pieces(*unit, lang):
                if not is_good_pair(english, translation, lang):
                    self.rejected += 1
                    continue
                translations = self.rows.setdefault(english, {})
                self.origin.setdefault(english, source)
                if lang not in translations:
                    translations[lang] = translation
                    self.accepted[source, lang] += 1

    def add_documents(self, english: Path, translation: Path, lang: str, source: str) -> None:
        """Adds two documents if their structures agree."""
        pairs = readers.document_pairs(english, translation)
        if pairs is None:
            self.unaligned_documents += 1
        else:
            self.add(pairs, lang, source)

    def add_catalogs(self, root: Path, source: str) -> None:
        """Adds every gettext catalog below a folder."""
        for folder, _, names in sorted(os.walk(root)):
            compiled = {name[:-3] for name in names if name.endswith(".mo")}
            for name in sorted(names):
                if name.endswith(".po") and name[:-3] in compiled:
                    continue
                path = Path(folder, name)
                lang = catalog_language(path)
                if lang and path.suffix in (".mo", ".po") and not path.is_symlink():
                    self.add(readers.catalog_file_pairs(path), lang, source)

    def write(self, path: Path) -> None:
        """Writes the rows as JSON lines."""
        with path.open("w", encoding="utf-8") as out:
            for english, translations in self.rows.items():
                row = {"en": english, **translations, "_src": self.origin[english]}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    def report(self) -> None:
        """Prints the number of rows by language and by source."""
        print(
            f"{len(self.rows)} rows; {self.rejected} pairs rejected; "
            f"{self.unaligned_documents} documents not aligned"
        )
        for lang in TRANSLATED:
            print(f"{lang}: {sum(lang in row for row in self.rows.values())} rows")
        totals: Counter[str] = Counter()
        for (source, _), count in self.accepted.items():
            totals[source] += count
        for source, _ in totals.most_common():
            print(f"{source:40s}", {lang: self.accepted[source, lang] for lang in TRANSLATED})


def catalog_language(path: Path) -> str | None:
    """Returns the language of a catalog, from its nearest locale folder or from its file name."""
    for folder in reversed(path.parts[:-1]):
        if folder in LOCALES:
            return LOCALES[folder]
    return LOCALES.get(path.stem)


def add_games(table: Table, work: Path) -> None:
    """Adds the games. They come first: their full sentences are the rarest kind of text here."""
    for package in GAMES:
        table.add_catalogs(work / "x" / package, package)
    for path in sorted((work / "x/fillets-ng-data").rglob("*dialogs_*.lua")):
        lang = LOCALES.get(path.stem.partition("dialogs_")[2])
        if lang:
            table.add(readers.lua_dialog_pairs(path), lang, "fillets-ng-data")


def add_wheels(table: Table, work: Path) -> None:
    """Adds the Python projects: JSON of Home Assistant, gettext catalogs of the others."""
    for folder in sorted((work / "py").glob("*")):
        project = folder.name.split("-")[0]
        if "homeassistant" in project:
            for english in sorted(folder.glob("**/translations/en.json")):
                for code in ("de", "fr", "es", "ru", "zh-Hans"):
                    pairs = readers.json_pairs(english, english.with_name(f"{code}.json"))
                    table.add(pairs, LOCALES[code], f"pypi:{project}")
        elif "jupyterlab" in project:
            # Each language has its own wheel; all of them get one tag.
            table.add_catalogs(folder, "pypi:jupyterlab_language_pack")
        else:
            table.add_catalogs(folder, f"pypi:{project}")


def add_package_descriptions(table: Table, work: Path) -> None:
    """Adds Debian's package descriptions and their translations."""
    lists = work / "apt/lists"
    english = readers.read_descriptions(lists, "en")
    codes = {"de": "de", "fr": "fr", "es": "es", "ru": "ru", "zh%5fCN": "zh"}
    for code, lang in codes.items():
        for md5, description in readers.read_descriptions(lists, code).items():
            if md5 in english:
                pairs = readers.description_pairs(english[md5], description, lang)
                table.add(pairs, lang, "ddtp")


def add_manuals(table: Table, work: Path) -> None:
    """Adds the desktop's help pages and the Debian handbook."""
    for help_folder in sorted((work / "x").glob("*/usr/share/help")):
        package = help_folder.relative_to(work / "x").parts[0]
        originals = help_folder / "C"
        pages = [p for kind in ("page", "docbook", "xml") for p in originals.rglob(f"*.{kind}")]
        for english in sorted(pages):
            for locale, lang in LOCALES.items():
                translation = help_folder / locale / english.relative_to(originals)
                if translation.exists():
                    table.add_documents(english, translation, lang, f"help:{package}")
    handbook = work / "x/debian-handbook/usr/share/doc/debian-handbook/html"
    for english in sorted(handbook.glob("en-US/*.html")):
        for locale, lang in HANDBOOK_LOCALES.items():
            translation = handbook / locale / english.name
            table.add_documents(english, translation, lang, "debian-handbook")


def add_source_packages(table: Table, work: Path) -> None:
    """Adds catalogs that only source packages contain, such as those of LibreOffice."""
    for folder in sorted((work / "src").glob("*")):
        name = folder.name.split("_")[0]
        # LibreOffice's translations unpack into a folder named "translations".
        table.add_catalogs(folder, "src:" + ("libreoffice" if name == "translations" else name))


def add_mediawiki(table: Table, work: Path) -> None:
    """Adds MediaWiki's messages, except those with wiki markup."""
    for english in sorted((work / "x/mediawiki").glob("**/i18n/**/en.json")):
        for code in ("de", "fr", "es", "ru", "zh-hans"):
            pairs = readers.json_pairs(english, english.with_name(f"{code}.json"))
            plain = (pair for pair in pairs if not re.search(r"\{\{|\[\[", "\n".join(pair)))
            table.add(plain, LOCALES[code], "mediawiki")


def add_packages(table: Table, work: Path) -> None:
    """Adds the catalogs of every binary package. Those of the games are already in the table."""
    for folder in sorted((work / "x").glob("*")):
        table.add_catalogs(folder, f"deb:{folder.name}")


def add_word_lists(table: Table, work: Path) -> None:
    """Adds Unicode's names, the Ding word list and the FreeDict dictionaries."""
    for lang in TRANSLATED:
        try:
            table.add(readers.cldr_pairs(work / "npm", lang), lang, "cldr")
        except (KeyError, OSError) as error:  # noqa: PERF203
            print(f"cldr {lang}: left out: {error}")
    for path in (work / "x/trans-de-en").glob("usr/share/trans/de-en"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            table.add(readers.ding_pairs(lines), "de", "trans-de-en")
    for name, lang in DICTIONARIES.items():
        for path in (work / f"x/dict-freedict-{name}").glob("usr/share/dictd/*.dict.dz"):
            pairs = readers.freedict_pairs(path)
            if name.endswith("-eng"):
                pairs = ((english, headword) for headword, english in pairs)
            table.add(pairs, lang, "freedict")


STEPS: tuple[Callable[[Table, Path], None], ...] = (
    add_games,
    add_wheels,
    add_package_descriptions,
    add_manuals,
    add_source_packages,
    add_mediawiki,
    add_packages,
    add_word_lists,
)


def main() -> None:
    """Collects every source and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    work: Path = parser.parse_args().work
    table = Table()
    for step in STEPS:
        step(table, work)
    table.write(work / "rows.jsonl")
    table.report()


if __name__ == "__main__":
    main()
