"""Selection of the held-out sentences, and removal of training rows that are too similar.

Knows rows; knows nothing of files and tokens.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

from vocabulary import LANGS

Row = dict[str, str]
"""Text by language, and the source tag under `_src`."""

HELD_OUT = 1000
KINDS = (
    (re.compile(r"wesnoth|widelands|fillets|freedroid|deb:freeciv|warzone|naev|minetest"), 0.26),
    (re.compile(r"src:libreoffice"), 0.20),
    (re.compile(r"homeassistant|django|wagtail|weblate|kolibri|plone|jupyter"), 0.16),
    (re.compile(r"mediawiki|phpmyadmin|wordpress"), 0.08),
    (re.compile(r"help:|handbook|installation-guide|ddtp|aptitude|src:apt|src:dpkg"), 0.14),
    (re.compile(r""), 0.16),
)
"""Source tags of each kind of text, and its share of the held-out sentences. The first match wins.
The kinds are games, the office suite, web and home services, wikis, manuals, and all other
programs."""

NOT_A_LETTER = re.compile(r"[\W\d_]+")


def _letters(text: str) -> str:
    return NOT_A_LETTER.sub("", text.lower())


def word_ngrams(text: str, n: int = 4) -> set[str]:
    """Returns the word n-grams of a text, or the whole text if it has fewer than n words."""
    words = NOT_A_LETTER.sub(" ", text.lower()).split()
    ngrams = {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
    return ngrams or {" ".join(words)}


def _is_candidate(row: Row) -> bool:
    english = row["en"]
    return (
        all(lang in row for lang in LANGS)
        and 5 <= len(english.split()) <= 22
        and len(english) <= 140
        and row["_src"] != "trans-de-en"
        and not re.search(r"[%{$<@/]", english)
        and english.endswith((".", "!", "?"))
    )


def hold_out(rows: list[Row]) -> list[Row]:
    """Returns up to `HELD_OUT` rows: full, dissimilar sentences in all six languages.

    Uses the global random number generator.
    """
    candidates = [row for row in rows if _is_candidate(row)]
    random.shuffle(candidates)
    pools: dict[int, list[Row]] = defaultdict(list)
    for row in candidates:
        kind = next(n for n, (tags, _) in enumerate(KINDS) if tags.search(row["_src"]))
        pools[kind].append(row)
    chosen: list[Row] = []
    seen: set[str] = set()
    for kind, (_, share) in enumerate(KINDS):
        wanted = round(HELD_OUT * share)
        for row in pools[kind]:
            ngrams = word_ngrams(row["en"])
            if len(ngrams & seen) > 0.3 * len(ngrams):
                continue
            seen |= ngrams
            chosen.append(row)
            wanted -= 1
            if not wanted:
                break
    random.shuffle(chosen)
    return chosen


def without_held_out(rows: list[Row], held_out: list[Row]) -> list[Row]:
    """Returns the rows that reveal no held-out sentence.

    Removes the held-out rows, rows with the same text in any language, and rows that share half of
    a held-out sentence's (or their own) word 4-grams.
    """
    held_ids = {id(row) for row in held_out}
    held_texts = {lang: {_letters(row[lang]) for row in held_out} for lang in LANGS}
    held_ngrams = [word_ngrams(row["en"]) for row in held_out]
    holders: dict[str, list[int]] = defaultdict(list)
    for index, ngrams in enumerate(held_ngrams):
        for ngram in ngrams:
            holders[ngram].append(index)

    def is_near(row: Row) -> bool:
        ngrams = word_ngrams(row["en"])
        shared = Counter(index for ngram in ngrams for index in holders.get(ngram, ()))
        return any(
            count >= 0.5 * min(len(ngrams), len(held_ngrams[index]))
            for index, count in shared.items()
        )

    def is_same(row: Row) -> bool:
        return any(lang in row and _letters(row[lang]) in held_texts[lang] for lang in LANGS)

    return [
        row for row in rows if id(row) not in held_ids and not is_same(row) and not is_near(row)
    ]
