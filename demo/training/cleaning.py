"""Text cleaning: which aligned units are good enough to train on.

Knows strings; knows nothing of files, formats or sources.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

WHITESPACE = re.compile(r"\s+")
TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
PLACEHOLDER = re.compile(
    r"%%|%\([\w.]+\)[sdifr]|%\d+\$[-+0]?\d*l*[sdifuxcS]|%[-+0]?\d*\.?\d*l*[sdifuxgcS](?![a-z])"
    r"|%\d+|%[A-Z]\b|\{[\w.:!]*\}|\{\{.*?\}\}|\$\{?\w+\}?|@\w+@|&\w+;"
)
NUMBER = re.compile(r"\d+")
LETTER = re.compile(r"[^\W\d_]")
HAN = re.compile(r"[\u4e00-\u9fff]")
KANA = re.compile(r"[\u3040-\u30ff]")
CYRILLIC = re.compile(r"[\u0400-\u04ff]")
LATIN = re.compile(r"[A-Za-zÀ-ÿ]")

# Keyboard mnemonics: GTK's "_File", Qt's "&File", LibreOffice's "~File". Chinese catalogs put the
# letter in brackets after the word: "文件(_F)".
BRACKETED_MNEMONIC = re.compile(r"\s*\([_&~]?[A-Z0-9]\)(?=\.{0,3}…?:?$|:|\s*$)")
MNEMONICS = (
    re.compile(r"(?<![_\w])_(?=\w)|(?<=[A-Za-zÀ-ÿ\u0400-\u04ff])_(?=[A-Za-zÀ-ÿ\u0400-\u04ff])"),
    re.compile(r"&(?=[^\W_])(?!\w+;)"),
    re.compile(r"~(?=[^\W_])"),
)

ADDRESS = re.compile(r"https?://|www\.|[\w.]+@[\w.]+\.\w+|\\n|\\t")
DOTTED_NAME = re.compile(r"[\w.:/-]*[.:_/][\w.:/-]*\w")
LOST_LINK = re.compile(r'\s[.,;](\s|$)|[(\[]\s*[)\]]|"\s*"')
CODE = re.compile(r"[=\\|^`]|--|::|\(\)|\[\[|\{\{|</|/>|\$\(")

SENTENCE_END = re.compile(r'(?<=[.!?:])["\')»]?\s+(?=[«"\'(¿¡]?[A-ZÀ-ÞА-Я])')
CHINESE_SENTENCE_END = re.compile(r"(?<=[。！？])(?=.)")
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|z\. ?B|d\. ?h|p\. ?ej|bzw|usw|Mr|Dr|No|Nr|St|[A-Z])\.)$"
)
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")

TYPOGRAPHY = str.maketrans(
    {
        "\u00ad": "",
        "\u200b": "",
        "\ufeff": "",
        "\u200e": "",
        "\u200f": "",
        "\u00a0": " ",
        "\u202f": " ",
        "“": '"',
        "”": '"',
        "„": '"',
        "’": "'",
        "‘": "'",
        "…": "...",
    }
)

LENGTH_RATIO = {"de": (0.55, 2.1), "fr": (0.55, 2.1), "es": (0.55, 2.1), "ru": (0.5, 2.1)}
CHINESE_WIDTH_RATIO = (0.3, 1.6)


def tidy(text: str) -> str:
    """Returns the text without markup, invisible characters and typographic variants."""
    text = text.replace("\\<", "<").replace("\\>", ">")
    text = html.unescape(TAG.sub("", text)).translate(TYPOGRAPHY)
    return WHITESPACE.sub(" ", text).strip(" \t|*•")


def strip_mnemonics(english: str, translation: str) -> tuple[str, str]:
    """Removes keyboard mnemonics of each kind that the English text has exactly once."""
    for mnemonic in MNEMONICS:
        if len(mnemonic.findall(english)) != 1:
            continue
        english = mnemonic.sub("", english)
        translation = BRACKETED_MNEMONIC.sub("", translation)
        if len(mnemonic.findall(translation)) == 1:
            translation = mnemonic.sub("", translation)
    return english, translation


def is_plain_english(text: str) -> bool:
    """Returns whether a string is text, and not an identifier, an address or a piece of code."""
    letters = len(LETTER.findall(text))
    return (
        letters >= 2
        and letters >= 0.55 * len(text.replace(" ", ""))
        and len(LATIN.findall(text)) >= 0.95 * letters
        and text.isprintable()
        and "_" not in text
        and not DOTTED_NAME.fullmatch(text)
        and not ADDRESS.search(text)
        and not LOST_LINK.search(text)
        and not CODE.search(text)
    )


def is_plain_translation(english: str, translation: str, lang: str) -> bool:
    """Returns whether the translation is in its language's script and of a plausible length."""
    letters = len(LETTER.findall(translation))
    if letters < 1 or letters < 0.45 * len(translation.replace(" ", "")):
        return False
    if not translation.isprintable() or ADDRESS.search(translation):
        return False
    width = len(translation)
    low, high = LENGTH_RATIO.get(lang, CHINESE_WIDTH_RATIO)
    if lang == "zh":
        right_script = len(HAN.findall(translation)) >= 0.4 * letters
        # A string with kana in a Chinese catalog is Japanese.
        right_script = right_script and not KANA.search(translation)
        width = sum(2 if ord(character) > 0x2E80 else 1 for character in translation)
    elif lang == "ru":
        right_script = len(CYRILLIC.findall(translation)) >= 0.5 * letters
    else:
        right_script = len(LATIN.findall(translation)) >= 0.95 * letters
    # Eight is added to both lengths, so that short strings may differ more.
    return right_script and low <= (width + 8) / (len(english) + 8) <= high


def is_good_pair(english: str, translation: str, lang: str) -> bool:
    """Returns whether to train on a pair: plain text, the same placeholders, the same numbers."""
    if not english or not translation or english == translation:
        return False
    if len(english) > 320 or len(translation) > 360:
        return False
    if not is_plain_english(english) or not is_plain_translation(english, translation, lang):
        return False
    placeholders = sorted(PLACEHOLDER.findall(english))
    if len(placeholders) > 3 or placeholders != sorted(PLACEHOLDER.findall(translation)):
        return False
    return sorted(NUMBER.findall(english)) == sorted(NUMBER.findall(translation))


def sentences(text: str, lang: str) -> list[str]:
    """Returns the sentences of a tidy text."""
    if lang == "zh":
        parts = CHINESE_SENTENCE_END.split(text)
    else:
        parts = []
        start = 0
        for match in SENTENCE_END.finditer(text):
            if ABBREVIATION.search(text[start : match.start()]):
                continue
            parts.append(text[start : match.end()])
            start = match.end()
        parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def aligned_pieces(english: str, translation: str, lang: str) -> Iterator[tuple[str, str]]:
    """Cuts an aligned unit into paragraphs, then into sentences, if the counts agree.

    Yields:
        (English, translation) pairs, tidy but not yet checked by `is_good_pair`.
    """
    english_paragraphs = [part for part in PARAGRAPH_BREAK.split(english) if part.strip()]
    paragraphs = [part for part in PARAGRAPH_BREAK.split(translation) if part.strip()]
    if len(english_paragraphs) > 1:
        if len(english_paragraphs) == len(paragraphs):
            for ours, theirs in zip(english_paragraphs, paragraphs, strict=True):
                yield from aligned_pieces(ours, theirs, lang)
        return
    english, translation = strip_mnemonics(tidy(english), tidy(translation))
    if not english or not translation or len(english) > 2000:
        return
    if len(english) > 60:
        english_sentences = sentences(english, "en")
        translated_sentences = sentences(translation, lang)
        if len(english_sentences) != len(translated_sentences):
            # Most long units that do not align are wrong.
            if len(english) <= 160:
                yield english, translation
            return
        if len(english_sentences) > 1:
            yield from zip(english_sentences, translated_sentences, strict=True)
            if len(english) > 160:
                return
    yield english, translation
