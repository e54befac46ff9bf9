"""Readers of the file formats of translations; all yield (English, translation) pairs.

Knows file formats; knows nothing of file locations and of the quality of a pair.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from cleaning import WHITESPACE

Pairs = Iterator[tuple[str, str]]

# ------------------------------------------------------------------------------ gettext catalogs

MO_BYTE_ORDER = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}
PO_KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[(\d)\])?)\s+"(.*)"$')
CONTEXT_PREFIX = re.compile(r"^_:[^\n]*\n|^\w+\|")
"""A context inside the msgid: KDE's first line "_: …", or the older form "Menu|Open"."""


def unescape(text: str) -> str:
    """Undoes the backslash escapes of .po files and Lua strings."""
    for escaped, plain in (("\\n", "\n"), ("\\t", "\t"), ('\\"', '"'), ("\\\\", "\\")):
        text = text.replace(escaped, plain)
    return text


def read_mo(data: bytes) -> Pairs:
    """Yields (msgid, msgstr) of a compiled catalog. NUL joins plural forms."""
    order = MO_BYTE_ORDER.get(data[:4])
    if order is None or len(data) < 28:
        return

    def text(table: int, index: int) -> str:
        length, start = struct.unpack_from(f"{order}2I", data, table + 8 * index)
        return data[start : start + length].decode("utf-8")

    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)
    for index in range(count):
        try:
            yield text(originals, index), text(translations, index)
        except UnicodeDecodeError:  # noqa: PERF203
            continue  # an old catalog in another encoding


@dataclass
class _PoEntry:
    """The entry being read."""

    msgid: str = ""
    plural: str | None = None
    forms: dict[int, str] = field(default_factory=dict)
    fuzzy: bool = False
    part: str = ""
    """The keyword read last; quoted lines continue it."""

    def pair(self) -> Pairs:
        """Yields the complete entry, unless it is the header, fuzzy or untranslated."""
        if not self.msgid or self.fuzzy:
            return
        msgstr = "\0".join(self.forms.get(n, "") for n in range(len(self.forms)))
        if msgstr.strip("\0"):
            plural = "" if self.plural is None else "\0" + self.plural
            yield self.msgid + plural, msgstr

    def start(self, keyword: str, form: int, text: str) -> None:
        """Adds a line that begins with a keyword."""
        self.part = keyword
        if keyword == "msgid":
            self.msgid = text
        elif keyword == "msgid_plural":
            self.plural = text
        elif keyword == "msgstr":
            self.forms[form] = text

    def extend(self, text: str) -> None:
        """Adds a quoted line that continues the last one."""
        if self.part == "msgid":
            self.msgid += text
        elif self.part == "msgid_plural":
            self.plural = (self.plural or "") + text
        elif self.part == "msgstr":
            self.forms[max(self.forms)] += text


def read_po(text: str) -> Pairs:
    """Yields (msgid, msgstr) like `read_mo`, without fuzzy and obsolete entries."""
    entry = _PoEntry()
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("#~"):
            continue
        match = PO_KEYWORD.match(line)
        # An entry ends with a blank line, or with a line that cannot follow its msgstr.
        opens_next = line.startswith("#") or (match and match[1] in ("msgctxt", "msgid"))
        if not line or (entry.part == "msgstr" and opens_next):
            yield from entry.pair()
            entry = _PoEntry()
        if line.startswith("#,") and "fuzzy" in line:
            entry.fuzzy = True
        elif match:
            entry.start(match[1].partition("[")[0], int(match[2] or 0), unescape(match[3]))
        elif len(line) > 1 and line.startswith('"') and line.endswith('"'):
            entry.extend(unescape(line[1:-1]))
    yield from entry.pair()


def catalog_pairs(entries: Pairs) -> Pairs:
    """Yields the singular pair of every catalog entry, and its plural pair if it has one.

    The last of several plural forms is used, which is the form for large numbers.
    """
    for msgid, msgstr in entries:
        english = msgid.split("\4", 1)[-1].split("\0")
        translation = msgstr.split("\0")
        if not english[0]:
            continue
        yield CONTEXT_PREFIX.sub("", english[0]), translation[0]
        if len(english) > 1 and len(translation) > 1:
            yield english[1], translation[-1]


def catalog_file_pairs(path: Path) -> Pairs:
    """Yields the pairs of a .mo or .po file. A .po file that is not UTF-8 has none."""
    data = path.read_bytes()
    if path.suffix == ".mo":
        yield from catalog_pairs(read_mo(data))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    yield from catalog_pairs(read_po(text))


# ----------------------------------------------------------- Debian package descriptions (DDTP)

BULLET = re.compile(r"\s*[-*+•o]\s")
LEADING_BULLET = re.compile(r"^\s*[-*+•o]\s+")
DESCRIPTION_MD5 = re.compile(r"^Description-md5: (\w+)$", re.MULTILINE)
DESCRIPTION_MD5_LINE = re.compile(r"^Description-md5:.*\n", re.MULTILINE)
DESCRIPTION = re.compile(r"^Description-\S+: (.*(?:\n .*)*)", re.MULTILINE)
BLANK_BETWEEN_CHINESE = re.compile(r"(?<=[\u3000-\u9fff、。])\s+(?=[\u3000-\u9fff])")


def read_descriptions(lists: Path, code: str) -> dict[str, str]:
    """Returns the package descriptions in a language, by the md5 of the English text."""
    descriptions = {}
    for path in sorted(lists.glob(f"*Translation-{code}.lz4")):
        unpacked = subprocess.run(["lz4", "-dc", path], capture_output=True, check=True).stdout
        for stanza in unpacked.decode("utf-8", "replace").split("\n\n"):
            md5 = DESCRIPTION_MD5.search(stanza)
            description = DESCRIPTION.search(DESCRIPTION_MD5_LINE.sub("", stanza))
            if md5 and description:
                descriptions[md5[1]] = description[1]
    return descriptions


def _description_blocks(description: str) -> list[str]:
    """Cuts a description into its title, paragraphs and list items, each on one line."""
    title, *lines = description.split("\n")
    blocks: list[list[str]] = []
    paragraph_ended = True
    for line in lines:
        if line.strip() == ".":
            paragraph_ended = True
            continue
        body = line[1:]
        indented_after_plain = body.startswith(" ") and (
            not paragraph_ended and not blocks[-1][0].startswith(" ")
        )
        if paragraph_ended or BULLET.match(body) or indented_after_plain:
            blocks.append([])
            paragraph_ended = False
        blocks[-1].append(body)
    flat = (" ".join(line.strip() for line in block).strip() for block in [[title], *blocks])
    return [LEADING_BULLET.sub("", block) for block in flat]


def description_pairs(english: str, translation: str, lang: str) -> Pairs:
    """Yields the titles, and the paragraphs if both descriptions have the same number of them."""
    ours, theirs = _description_blocks(english), _description_blocks(translation)
    if lang == "zh":
        # Joining wrapped lines inserts a space between two Chinese characters.
        theirs = [BLANK_BETWEEN_CHINESE.sub("", block) for block in theirs]
    yield ours[0], theirs[0]
    if len(ours) == len(theirs):
        yield from zip(ours[1:], theirs[1:], strict=True)


# -------------------------------------------------------------------- parallel HTML and DocBook

BLOCK_TAG = re.compile(r"p|title|desc|h[1-4]|li|d[td]|t[dh]|para|simpara|term|item|caption")
VERBATIM_TAG = re.compile(r"script|style|pre|screen|programlisting")


class _BlockParser(HTMLParser):
    """Collects the text of the innermost block elements, in document order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self._tag = ""
        self._text: list[str] | None = None
        self._verbatim_depth = 0

    def flush(self) -> None:
        text = WHITESPACE.sub(" ", "".join(self._text or ())).strip()
        if text:
            self.blocks.append((self._tag, text))
        self._text = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if VERBATIM_TAG.fullmatch(tag):
            self._verbatim_depth += 1
        if BLOCK_TAG.fullmatch(tag):
            self.flush()
            self._tag, self._text = tag, []

    def handle_endtag(self, tag: str) -> None:
        if VERBATIM_TAG.fullmatch(tag):
            self._verbatim_depth = max(0, self._verbatim_depth - 1)
        if BLOCK_TAG.fullmatch(tag):
            self.flush()

    def handle_data(self, data: str) -> None:
        if self._text is not None and not self._verbatim_depth:
            self._text.append(data)


def _document_blocks(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    parser = _BlockParser()
    parser.feed(text)
    parser.flush()
    return parser.blocks


def document_pairs(english: Path, translation: Path) -> list[tuple[str, str]] | None:
    """Returns the pairs of two documents, or None if their sequences of blocks differ."""
    ours, theirs = _document_blocks(english), _document_blocks(translation)
    if not ours or [tag for tag, _ in ours] != [tag for tag, _ in theirs]:
        return None
    return [(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]


# ----------------------------------------------------------------------------- JSON and word lists


def _strings(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(value, f"{path}/{key}")
    elif isinstance(node, str):
        yield path, node


def json_pairs(english: Path, translation: Path) -> Pairs:
    """Yields the strings that two JSON files have under the same keys."""
    try:
        ours = dict(_strings(json.loads(english.read_text(encoding="utf-8"))))
        theirs = dict(_strings(json.loads(translation.read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return
    for key, text in ours.items():
        if key in theirs:
            yield text, theirs[key]


def _only_file(root: Path, pattern: str) -> Path:
    for path in sorted(root.glob(pattern)):
        return path
    raise FileNotFoundError(f"{root}/{pattern}: no such file; fetch.sh unpacks it")


def cldr_pairs(npm: Path, lang: str) -> Pairs:
    """Yields Unicode's names of emoji, languages, territories and scripts."""

    def emoji_names(code: str) -> dict[str, str]:
        path = _only_file(
            npm, f"cldr-annotations-full-*/package/annotations/{code}/annotations.json"
        )
        entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
        return {emoji: entry["tts"][0] for emoji, entry in entries.items() if "tts" in entry}

    def display_names(kind: str) -> Callable[[str], dict[str, str]]:
        def names(code: str) -> dict[str, str]:
            path = _only_file(npm, f"cldr-localenames-full-*/package/main/{code}/{kind}.json")
            main = json.loads(path.read_text(encoding="utf-8"))["main"]
            return main[code]["localeDisplayNames"][kind]

        return names

    kinds = (display_names(kind) for kind in ("languages", "territories", "scripts"))
    for names in (emoji_names, *kinds):
        ours, theirs = names("en"), names(lang)
        yield from ((ours[key], theirs[key]) for key in ours if key in theirs)


LUA_DIALOG = re.compile(
    r'dialogId\("[^"]*",\s*"[^"]*",\s*"((?:[^"\\]|\\.)*)"\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)'
)


def lua_dialog_pairs(path: Path) -> Pairs:
    """Yields the dialogues of the game Fish Fillets."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for english, translation in LUA_DIALOG.findall(text):
        yield unescape(english), unescape(translation)


DING_REMARK = re.compile(r'\{[^}]*\}|\[[^\]]*\]|/[^/]*/|<[^>]*>|"')


def _ding_headword(entry: str) -> str:
    return WHITESPACE.sub(" ", DING_REMARK.sub("", entry.split(";")[0])).strip()


def ding_pairs(lines: Iterable[str]) -> Pairs:
    """Yields (English, German): the first sense of each entry of the Ding word list."""
    for line in lines:
        if line.startswith("#") or " :: " not in line:
            continue
        german_side, english_side = line.rstrip("\n").split(" :: ", 1)
        german_entries, english_entries = german_side.split("|"), english_side.split("|")
        if len(german_entries) != len(english_entries):
            continue
        for entries in zip(german_entries, english_entries, strict=True):
            german, english = map(_ding_headword, entries)
            if german and english and "(" not in german + english and "..." not in german + english:
                yield english, german


FREEDICT_HEADWORD = re.compile(r"(\S[^/]{0,40}) /[^/]+/")
FREEDICT_REMARK = re.compile(r"^\d+\.\s*|\([^)]*\)|<[^>]*>")


def freedict_pairs(path: Path) -> Pairs:
    """Yields (headword, first translation) of each entry of a FreeDict dictionary."""
    headword = None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            match = FREEDICT_HEADWORD.match(line)
            if match:
                headword = match[1].strip()
            elif headword and line.strip():
                meanings = FREEDICT_REMARK.sub("", line.strip())
                first = meanings.split(",")[0].split(";")[0].strip()
                if first:
                    yield headword, first
                headword = None
