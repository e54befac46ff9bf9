"""Files: the texts in them, and the same file around their translations.

Knows formats: plain text, HTML, subtitles of SubRip. What is no text stays as it is.
"""

from __future__ import annotations

import codecs
import html
import re
import textwrap
from collections.abc import Sequence
from pathlib import PurePosixPath

from m2m100_onnx.server.refusals import Refused

__all__ = ["FORMATS", "Document"]

FORMATS = {
    ".txt": "text/plain",
    ".html": "text/html",
    ".htm": "text/html",
    ".srt": "application/x-subrip",
}
"""Endings of the files that can be read, with their types."""

_TIMES = re.compile(r"\s*\d+:\d\d:\d\d[,.]\d+\s*-->\s*\d+:\d\d:\d\d[,.]\d+")
# A speaker's line of a dialogue begins with a dash.
_SPEAKER = re.compile(r"\s*[-\u2013\u2014]\s*\S")
_PLACE = re.compile(r"(?:\s*\{\\[^{}]*\})+\s*")
# What a line of a subtitle is broken at is a space outside tags.
_UNBROKEN = re.compile(r"(?:<[^<>]*>|\S)+")


class Document:
    """A file.

    Attributes:
        texts: the texts in it.
        is_html: whether they have tags, which are not to be translated.
    """

    def __init__(self, name: str, content: bytes) -> None:
        """Reads a file.

        Raises:
            Refused: its format is not supported, or it is not in UTF-8.
        """
        self.ending = PurePosixPath(name).suffix.lower()
        if self.ending not in FORMATS:
            raise Refused("bad_request", "Invalid request: file format not supported")
        self._mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
        try:
            text = content[len(self._mark) :].decode()
        except UnicodeDecodeError:
            message = "Invalid request: the file is not in UTF-8"
            raise Refused("bad_request", message) from None
        self._end = "\r\n" if "\r\n" in text else "\n"
        self.is_html = self.ending != ".txt"
        # What lies around the texts, one more than there are texts, and the lines that each had.
        self._between, self.texts, self._lines = ["", ""], [text], [0]
        if self.ending == ".srt":
            self._between, self.texts, self._lines = _subtitles(text)

    def filled(self, translations: Sequence[str]) -> bytes:
        """Returns the file with a translation in the place of each text."""
        parts = [self._between[0]]
        for text, lines, after in zip(translations, self._lines, self._between[1:], strict=True):
            # Subtitles have tags, and no character references.
            parts += [_wrapped(html.unescape(text), lines, self._end) if lines else text, after]
        return self._mark + "".join(parts).encode("utf-8", "replace")


def _subtitles(text: str) -> tuple[list[str], list[str], list[int]]:
    """Returns what lies between the texts of subtitles, the texts, and how many lines each has.

    The lines of a subtitle are one text, since a sentence goes over several, but for those of a
    dialogue: each speaker has a text.
    """
    between: list[str] = [""]
    texts: list[str] = []
    counts: list[int] = []
    inside, adds = False, False
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\r\n")
        if _TIMES.match(body):
            inside, adds = True, False
        elif not body.strip():
            inside = False
        elif inside:
            end = line[len(body) :]
            placed = _PLACE.match(body)
            if adds and not placed and not _SPEAKER.match(body):
                texts[-1] += f" {body.strip()}"
                counts[-1] += 1
                between[-1] = end
            else:
                # `{\an8}` says where a subtitle stands.
                start = placed.end() if placed else 0
                between[-1] += body[:start]
                texts.append(body[start:].strip())
                counts.append(1)
                between.append(end)
            adds = True
            continue
        between[-1] += line
    return between, texts, counts


def _wrapped(text: str, lines: int, end: str) -> str:
    """Returns a text on at most as many lines, of about the same length, with an end between."""
    # A space in a tag is hidden from textwrap, which knows no tags.
    words = [word.replace(" ", "\0") for word in _UNBROKEN.findall(text)]
    joined = " ".join(words)
    width, found = max(1, len(joined) // lines), [joined] * (lines + 1)
    while len(found) > lines:
        found = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
        width += 1 + width // 20  # A subtitle may be as long as the file.
    return end.join(found).replace("\0", " ")
