#!/usr/bin/env python3
"""Excluded sources, and the licence that each source states.

As a program, it reads WORK/corpus/train.jsonl.xz and the unpacked packages, and writes
WORK/corpus/SOURCES.tsv (source, train rows, licence). The table repeats the statements of the
packages; it is not a legal review.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import Counter
from pathlib import Path

EXCLUDED = {
    "octoprint": "AGPL-3.0",
    "pretix": "AGPL-3.0 with additional terms",
}
"""Projects whose text is never trained on, and why. A name matches anywhere in a source tag, so it
also covers plugins and Debian packages of the project."""

KNOWN_LICENCES = {
    "ddtp": (
        "Debian package descriptions and their DDTP translations; as part of the packaging, "
        "under each package's debian/* terms (mostly GPL-2+, MIT, BSD)"
    ),
    "src:libreoffice": "MPL-2.0 (parts LGPL-3+/Apache-2.0 heritage)",
    "src:calibre": "GPL-3",
    "src:apt": "GPL-2+",
    "src:dpkg": "GPL-2+",
    "src:aptitude": "GPL-2+",
    "src:installation-guide": "GPL-2",
    "cldr": "Unicode License v3",
    "trans-de-en": "Ding word list, GPL-2+ (TU Chemnitz)",
    "freedict": "FreeDict, GPL-2+",
    "debian-handbook": "GPL-2+ or CC-BY-SA-3.0",
    "mediawiki": "GPL-2+",
    "wesnoth-1.16-data": "GPL-2+ (some newer parts CC-BY-SA-4.0)",
    "help:gnome-user-docs": "CC-BY-SA-3.0",
    "help:gnome-devel-docs": "CC-BY-SA / GFDL-1.1+",
    "pypi:jupyterlab_language_pack": "BSD-3-Clause",
}
"""Filled in by hand, for sources without a machine-readable licence in their unpacked files."""

DEFAULT_WORK = Path(__file__).resolve().parent.parent / "build"


def is_excluded(source: str) -> bool:
    """Returns whether a source tag such as `pypi:pretix` belongs to an excluded project."""
    return any(project in source.casefold() for project in EXCLUDED)


def debian_licence(work: Path, package: str) -> str:
    """Returns the five most common licence names of a package's copyright file."""
    root = work / "x" / package / "usr/share/doc"
    own_first = [root / package / "copyright", *sorted(root.glob("*/copyright"))]
    for path in own_first:
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        names = Counter(re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))
        if names:
            return ", ".join(name for name, _ in names.most_common(5))
        common = re.findall(r"/usr/share/common-licenses/([\w.+-]+)", text)
        if common:
            return ", ".join(sorted({name.rstrip(".") for name in common}))
    return "see the package's copyright file"


def wheel_licence(work: Path, project: str) -> str:
    """Returns the licence that a Python project's metadata states."""
    for path in sorted((work / "py").glob(f"{project}-*/*.dist-info/METADATA")):
        text = path.read_text(encoding="utf-8", errors="replace")
        stated = re.findall(r"^License(?:-Expression)?: (.{1,60})$", text, re.MULTILINE)
        classifiers = re.findall(
            r"^Classifier: License :: (?:OSI Approved :: )?(.*)$", text, re.MULTILINE
        )
        if stated or classifiers:
            return ", ".join(stated or classifiers)
    return "see the package"


def licence(work: Path, source: str) -> str:
    """Returns the licence of a source tag."""
    if source in KNOWN_LICENCES:
        return KNOWN_LICENCES[source]
    kind, _, name = source.rpartition(":")
    return wheel_licence(work, name) if kind == "pypi" else debian_licence(work, name)


def main() -> None:
    """Writes the licence table of the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    work: Path = parser.parse_args().work
    with lzma.open(work / "corpus/train.jsonl.xz", "rt", encoding="utf-8") as corpus:
        rows = Counter(json.loads(line)["_src"] for line in corpus)
    table = work / "corpus/SOURCES.tsv"
    with table.open("w", encoding="utf-8") as out:
        out.write("source\ttrain rows\tlicence\n")
        out.writelines(
            f"{source}\t{count}\t{licence(work, source)}\n" for source, count in rows.most_common()
        )
    print(f"{len(rows)} sources, {rows.total()} rows: {table}")


if __name__ == "__main__":
    main()
