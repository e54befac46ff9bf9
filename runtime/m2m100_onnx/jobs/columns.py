"""Columns of texts in, columns of translations out: what every engine's workers do with rows.

Knows columns and one `Translator`. Refuses to know Ray, Spark, files and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.process import cores, memory_limit
from m2m100_onnx.translation import Translation
from m2m100_onnx.translator import Translator

__all__ = ["EMPTY", "UNFINISHED", "Columns", "Counts", "Results", "share_of_memory", "translate"]

UNFINISHED = "unfinished"
"""A flag: the translation has no `</s>`; `max_length`, or another limit, has cut it."""
EMPTY = "empty"
"""A flag: a text with words has a translation without any character but spaces."""
_SHARE_OF_MEMORY = 4
"""A node's batches may reserve the memory divided by this, all workers together."""


@dataclass(frozen=True)
class Columns:
    """Which columns are read and which are added.

    Attributes:
        text: the texts.
        source_lang: their language, if it is one for all rows.
        source_lang_column: the column of their languages, if it is not.
        target_lang: the language to translate into, if it is one for all rows.
        target_lang_column: the column of these languages, if it is not.
        output: the column of translations, null where there is none. `OUTPUT_error` says why there
            is none, `OUTPUT_flag` what is suspicious about one; else they are null.

    Raises:
        InvalidInputError: a language is given twice or not at all, or a name is no text.
    """

    text: str = "text"
    source_lang: str | None = None
    source_lang_column: str | None = None
    target_lang: str | None = None
    target_lang_column: str | None = None
    output: str = "translation"

    def __post_init__(self) -> None:
        for side in ("source_lang", "target_lang"):
            given = [getattr(self, side), getattr(self, f"{side}_column")]
            if (given[0] is None) == (given[1] is None):
                found = "none" if given[0] is None else "both"
                raise InvalidInputError(
                    f"{side}: expected a code for all rows or the name of a column, found {found}"
                )
        for name in (*self.read, self.output):
            if not isinstance(name, str) or not name:
                raise InvalidInputError(f"columns: expected names, found {name!r}")

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read: the text's first, then those of languages."""
        languages = (self.source_lang_column, self.target_lang_column)
        return (self.text, *(name for name in languages if name is not None))

    @property
    def added(self) -> tuple[str, str, str]:
        """The columns that are added: translation, error, flag."""
        return self.output, f"{self.output}_error", f"{self.output}_flag"

    def check(self, found: Sequence[str], where: str) -> None:
        """Checks the columns of a file or a table.

        Args:
            found: their names.
            where: what has them, for error messages.

        Raises:
            InvalidInputError: a column that is read is missing or there twice, or one that is
                added is there already.
        """
        shown = ", ".join(map(repr, found)) or "none"
        for name in self.read:
            if found.count(name) != 1:
                how = "a" if name not in found else "one"
                raise InvalidInputError(f"{where}: expected {how} column {name!r}, found {shown}")
        for name in self.added:
            if name in found:
                raise InvalidInputError(
                    f"{where}: expected no column {name!r}, which is to be added, found {shown}; "
                    "choose another name for the output"
                )


@dataclass
class Counts:
    """What happened to the rows of one pair of languages.

    Attributes:
        sentences: rows that were translated.
        errors: rows that could not be.
        flagged: translations with a flag.
        characters: of the texts that were translated.
        target_tokens: tokens of the translations, start and language token included.
    """

    sentences: int = 0
    errors: int = 0
    flagged: int = 0
    characters: int = 0
    target_tokens: int = 0


@dataclass
class Results:
    """The columns that are added, a value for each row, and what was counted.

    Attributes:
        translations: the translations; None where there is an error.
        errors: why there is no translation, else None.
        flags: `UNFINISHED` or `EMPTY`, else None.
        stats: what the calls did.
        counts: by `source-target`; languages that are no text are `?`.
    """

    translations: list[str | None] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    flags: list[str | None] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    counts: dict[str, Counts] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[list[str | None], list[str | None], list[str | None]]:
        """The values in the order of `Columns.added`."""
        return self.translations, self.errors, self.flags


def share_of_memory(threads: int) -> int | None:
    """Returns `max_batch_bytes` for a worker beside others; None if the memory is unknown.

    The library's default, a quarter of the memory, is that of a process alone on its machine.

    Args:
        threads: cores of the worker; the machine is taken to have workers on all of its cores.
    """
    memory = memory_limit()
    if memory is None:
        return None
    return max(1, memory // _SHARE_OF_MEMORY * threads // max(threads, cores()))


def translate(
    translator: Translator,
    columns: Columns,
    rows: Sequence[Sequence[Any]],
    problems: Mapping[int, str],
    options: Mapping[str, Any],
) -> Results:
    """Translates columns of rows in one call, which sorts the rows by length.

    Args:
        translator: translates.
        columns: what `rows` are.
        rows: the columns of `columns.read`, a value for each row.
        problems: why rows cannot be read, by their places; these are not translated.
        options: of the call, as `Translator.translate_batch` takes them.

    Raises:
        M2M100Error: what is wrong is not one row, such as an option or a language for all.
    """
    places = [place for place in range(len(rows[0])) if place not in problems]
    languages = iter(rows[1:])
    sources = next(languages) if columns.source_lang_column else columns.source_lang
    targets = next(languages) if columns.target_lang_column else columns.target_lang
    pairs = [(_of(sources, place), _of(targets, place)) for place in places]
    results = Results()
    found = translator.translate_batch(
        [rows[0][place] for place in places],
        source_lang=columns.source_lang or [source for source, _ in pairs],
        target_lang=columns.target_lang or [target for _, target in pairs],
        on_error="return",
        stats=results.stats,
        **options,
    )
    end = translator.bundle.config.eos_token_id
    by_place = dict(zip(places, zip(found, pairs, strict=True), strict=True))
    for place, text in enumerate(rows[0]):
        if place in problems:
            _add(results, None, problems[place], None)
            continue
        outcome, pair = by_place[place]
        _count(results, outcome, text, pair, end)
    return results


def _of(languages: Any, place: int) -> Any:
    return languages if isinstance(languages, str) else languages[place]


def _count(
    results: Results, outcome: Translation | M2M100Error, text: Any, pair: tuple[Any, Any], end: int
) -> None:
    name = "-".join(code if isinstance(code, str) else "?" for code in pair)
    counts = results.counts.setdefault(name, Counts())
    if isinstance(outcome, M2M100Error):
        counts.errors += 1
        _add(results, None, f"{type(outcome).__name__}: {outcome.message}", None)
        return
    flag = _flag(outcome, end)
    counts.sentences += 1
    counts.flagged += flag is not None
    counts.characters += len(text)
    counts.target_tokens += len(outcome.tokens)
    _add(results, outcome.text, None, flag)


def _flag(found: Translation, end: int) -> str | None:
    if not found.tokens:  # The source has no words.
        return None
    if found.tokens[-1] != end:
        return UNFINISHED
    return None if found.text.strip() else EMPTY


def _add(results: Results, text: str | None, error: str | None, flag: str | None) -> None:
    for values, value in zip(results.columns, (text, error, flag), strict=True):
        values.append(value)
