"""The licence that a checkpoint or an adapter names in the metadata of its own model card.

Refuses to know what a licence allows, whether it forbids commercial use excepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m2m100_onnx_export.hub import CARD_FILE

__all__ = ["Licence", "licence_of"]

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.MULTILINE | re.DOTALL)
# As in `cc-by-nc-4.0`.
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """A licence as a model card names it.

    Attributes:
        names: the hub's identifiers in lower case, such as `mit`; empty where none is named.
        title: the licence's name where the identifier is `other`.
        link: the address of its text, or the name of a file beside the model card.
    """

    names: tuple[str, ...] = ()
    title: str | None = None
    link: str | None = None

    @property
    def non_commercial(self) -> bool:
        """Whether the name says that commercial use is forbidden."""
        return any(_NON_COMMERCIAL.search(name) for name in (*self.names, (self.title or "")))


def licence_of(folder: Path) -> Licence:
    """Returns the licence that the model card of a folder names."""
    path = folder / CARD_FILE
    text = path.read_text("utf-8-sig", "replace") if path.is_file() else ""
    matter = _FRONT_MATTER.match(text)
    try:
        facts = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:
        # A card is for readers; a broken one must not keep anyone from exporting.
        facts = None
    if not isinstance(facts, dict):
        return Licence()
    given = facts.get("license")
    names = map(_line, given if isinstance(given, list) else [given])
    return Licence(
        names=tuple(name.lower() for name in names if name),
        title=_line(facts.get("license_name")),
        link=_line(facts.get("license_link")),
    )


def _line(value: Any) -> str | None:
    """Returns a value of the metadata as one line, None where it is no text."""
    return (" ".join(value.split()) or None) if isinstance(value, str) else None
