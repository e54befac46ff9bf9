"""HTML: the runs of text in it, and the same markup around their translations.

A run ends at a tag that ends a sentence, such as that of a paragraph. Such tags stay where they
are, byte for byte; inline tags are the run's. Text in elements that are no prose, and under
`translate="no"`, is no run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Literal, NamedTuple

from m2m100_onnx.server.inline import Element, Mark, elements_of
from m2m100_onnx.server.refusals import Refused

__all__ = ["Markup", "Run"]

_SKIPPED = frozenset(
    ("address", "applet", "audio", "canvas", "code", "embed", "script", "style", "time", "video")
)
# A tag in which another begins. Python's parser takes quadratic time for many of them.
_CUT_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*(?=<)")
_MOST_CUT_TAGS = 200
_INLINE = frozenset(
    (
        *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "data", "del", "dfn", "em"),
        *("font", "i", "img", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span"),
        *("strike", "strong", "sub", "sup", "tt", "u", "var", "wbr"),
    )
)
# A line break in the middle of a sentence is a blank; others are kept, for who takes text for HTML.
_BROKEN = re.compile(r"(?<=[^\s.!?:;\u2026\u3002\uff01\uff1f])[ \t]*(?:\r\n|\r|\n)\s*(?=\S)")
_Kind = Literal["text", "open", "close", "void", "break"]
_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)


@dataclass(frozen=True)
class Run:
    """A run of text.

    Attributes:
        text: it, without tags, character references, and the blanks around it.
        elements: the inline tags in it.
    """

    text: str
    elements: tuple[Element, ...] = ()


class Markup:
    """A document.

    Attributes:
        runs: its runs of text.
    """

    def __init__(self, document: str, *, inline: bool = True) -> None:
        """Reads a document.

        Args:
            document: it.
            inline: whether a run goes on over inline tags; else it ends at each.

        Raises:
            Refused: it cannot be read, or not in reasonable time.
        """
        if sum(1 for _ in _CUT_TAG.finditer(document)) > _MOST_CUT_TAGS:
            raise Refused("bad_request", "Invalid HTML: too many tags are not closed")
        self._parts: list[str | tuple[str, str]] = []
        self.runs: list[Run] = []
        waiting: list[_Token] = []
        for token in _Tokens(document).found:
            if token.kind == "break" or (token.kind != "text" and not inline):
                self._add(waiting)
                waiting = []
                self._parts.append(token.raw)
            else:
                waiting.append(token)
        self._add(waiting)

    def _add(self, tokens: Sequence[_Token]) -> None:
        """Adds a run of text and inline tags; one run for each text where the tags are crossed."""
        text, marks = "", []
        for token in tokens:
            if token.kind == "text":
                text += html.unescape(token.raw)
            elif token.kind != "break":
                marks.append(Mark(len(text), token.raw, token.kind, token.name))
        # As many blanks, so that offsets stay right; the tokenizer takes them for one.
        text = _BROKEN.sub(lambda found: " " * len(found[0]), text)
        body = text.strip()
        start = text.index(body)
        # Tags in the blanks around the text stay with it.
        inner = [
            replace(mark, offset=min(max(0, mark.offset - start), len(body))) for mark in marks
        ]
        elements = elements_of(inner, len(body))
        if not any(character.isalnum() for character in body):
            self._parts += [token.raw for token in tokens]
        elif elements is not None:
            self._parts.append((text[:start], text[start + len(body) :]))
            self.runs.append(Run(body, elements))
        else:
            for token in tokens:
                if token.kind == "text":
                    self._add([token])
                else:
                    self._parts.append(token.raw)

    def filled(self, translations: Sequence[str]) -> str:
        """Returns the document with HTML in the place of each run."""
        left = iter(translations)
        return "".join(
            part if isinstance(part, str) else f"{part[0]}{next(left)}{part[1]}"
            for part in self._parts
        )


class _Token(NamedTuple):
    """A token of a document: as it is written, what it is, and its element's name."""

    raw: str
    kind: Literal["text", "open", "close", "void", "break"]
    name: str = ""


class _Tokens(HTMLParser):
    """Finds the tokens of a document.

    Text that is not to be translated is a break, as are tags that end a sentence.

    Attributes:
        found: the tokens, which make up the document.
    """

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=False)
        self._lines = [0]
        for position, character in enumerate(document):
            if character == "\n":
                self._lines.append(position + 1)
        self._starts: list[tuple[int, _Kind, str]] = []
        # Open elements: their names, and whether their text is left as it is.
        self._open: list[tuple[str, bool]] = []
        try:
            self.feed(document)
            self.close()
        except AssertionError as error:  # Older Pythons raise it for declarations such as `<![x`.
            raise Refused("bad_request", f"Invalid HTML: {error}") from error
        # A text and its character references are one token.
        kept = [
            start
            for position, start in enumerate(self._starts)
            if not (start[1] == "text" and position and self._starts[position - 1][1] == "text")
        ]
        ends = [start for start, _, _ in kept[1:]] + [len(document)] if kept else []
        first = kept[0][0] if kept else len(document)
        self.found = [_Token(document[:first], "break")] if first else []
        for (start, kind, name), end in zip(kept, ends, strict=True):
            self.found.append(_Token(document[start:end], kind, name))

    def _mark(self, kind: _Kind = "break", name: str = "") -> None:
        line, column = self.getpos()
        self._starts.append((self._lines[line - 1] + column, kind, name))

    @property
    def _is_skipped(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._mark("void" if tag in _INLINE and not self._is_skipped else "break")
            return
        asked = dict(attrs).get("translate")
        kept = self._is_skipped if asked not in ("no", "yes") else asked == "no"
        kept = kept or tag in _SKIPPED
        flows = tag in _INLINE and not kept and not self._is_skipped
        self._mark("open" if flows else "break", tag)
        self._open.append((tag, kept))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._mark("void" if tag in _INLINE and not self._is_skipped else "break")

    def handle_endtag(self, tag: str) -> None:
        flows = tag in _INLINE and not self._is_skipped
        for position in reversed(range(len(self._open))):
            if self._open[position][0] == tag:
                # One that began in what is skipped, or is, ends there.
                flows = flows and not (position and self._open[position - 1][1])
                del self._open[position:]
                break
        self._mark("close" if flows else "break", tag)

    def handle_data(self, data: str) -> None:  # noqa: ARG002
        self._mark("break" if self._is_skipped else "text")

    def handle_charref(self, name: str) -> None:  # noqa: ARG002
        self._mark("break" if self._is_skipped else "text")

    def handle_entityref(self, name: str) -> None:  # noqa: ARG002
        self._mark("break" if self._is_skipped else "text")

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        self._mark("break" if self._is_skipped else "void")

    def handle_decl(self, decl: str) -> None:  # noqa: ARG002
        self._mark()

    def handle_pi(self, data: str) -> None:  # noqa: ARG002
        self._mark()

    def unknown_decl(self, data: str) -> None:  # noqa: ARG002
        self._mark()
