"""HTML: the runs of text in it, and the same markup around their translations.

A run ends at a tag, so that every tag stays where it is, byte for byte. Text in elements that are
no prose, and under `translate="no"`, is no run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser

from m2m100_onnx.server.refusals import Refused

__all__ = ["Markup"]

_SKIPPED = frozenset(
    ("address", "applet", "audio", "canvas", "code", "embed", "script", "style", "time", "video")
)
# A tag in which another begins. Python's parser takes quadratic time for many of them.
_CUT_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*(?=<)")
_MOST_CUT_TAGS = 200
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)


class Markup:
    """A document.

    Attributes:
        runs: its runs of text, without character references and the blanks around them.
    """

    def __init__(self, document: str) -> None:
        """Reads a document.

        Raises:
            Refused: it cannot be read, or not in reasonable time.
        """
        if sum(1 for _ in _CUT_TAG.finditer(document)) > _MOST_CUT_TAGS:
            raise Refused("bad_request", "Invalid HTML: too many tags are not closed")
        self._parts: list[str | tuple[str, str]] = []
        self.runs: list[str] = []
        for raw, is_text in _Tokens(document).found:
            text = html.unescape(raw)
            body = text.strip()
            if is_text and any(character.isalnum() for character in body):
                start = text.index(body)
                self._parts.append((text[:start], text[start + len(body) :]))
                self.runs.append(body)
            else:
                self._parts.append(raw)

    def filled(self, translations: Sequence[str]) -> str:
        """Returns the document with a translation in the place of each run."""
        left = iter(translations)
        return "".join(
            part
            if isinstance(part, str)
            else f"{part[0]}{html.escape(next(left), quote=False)}{part[1]}"
            for part in self._parts
        )


class _Tokens(HTMLParser):
    """Finds the tokens of a document as they are written, and which of them are text to translate.

    Attributes:
        found: each token, and whether it is.
    """

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=False)
        self._lines = [0]
        for position, character in enumerate(document):
            if character == "\n":
                self._lines.append(position + 1)
        self._starts: list[tuple[int, bool]] = []
        # Open elements: their names, and whether their text is left as it is.
        self._open: list[tuple[str, bool]] = []
        try:
            self.feed(document)
            self.close()
        except AssertionError as error:  # Older Pythons raise it for declarations such as `<![x`.
            raise Refused("bad_request", f"Invalid HTML: {error}") from error
        # A text and its character references are one token.
        kept = [
            (start, is_text)
            for position, (start, is_text) in enumerate(self._starts)
            if not (is_text and position and self._starts[position - 1][1])
        ]
        ends = [start for start, _ in kept[1:]] + [len(document)] if kept else []
        first = kept[0][0] if kept else len(document)
        self.found = [(document[:first], False)] if first else []
        for (start, is_text), end in zip(kept, ends, strict=True):
            self.found.append((document[start:end], is_text))

    def _mark(self, is_text: bool = False) -> None:
        line, column = self.getpos()
        self._starts.append((self._lines[line - 1] + column, is_text))

    @property
    def _is_skipped(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._mark()
        if tag in _VOID:
            return
        asked = dict(attrs).get("translate")
        kept = self._is_skipped if asked not in ("no", "yes") else asked == "no"
        self._open.append((tag, kept or tag in _SKIPPED))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._mark()

    def handle_endtag(self, tag: str) -> None:
        self._mark()
        for position in reversed(range(len(self._open))):
            if self._open[position][0] == tag:
                del self._open[position:]
                return

    def handle_data(self, data: str) -> None:  # noqa: ARG002
        self._mark(not self._is_skipped)

    def handle_charref(self, name: str) -> None:  # noqa: ARG002
        self._mark(not self._is_skipped)

    def handle_entityref(self, name: str) -> None:  # noqa: ARG002
        self._mark(not self._is_skipped)

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        self._mark()

    def handle_decl(self, decl: str) -> None:  # noqa: ARG002
        self._mark()

    def handle_pi(self, data: str) -> None:  # noqa: ARG002
        self._mark()

    def unknown_decl(self, data: str) -> None:  # noqa: ARG002
        self._mark()
