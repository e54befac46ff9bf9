"""Every option of a translating call, once: name, type, range, default, other tools' names, help.

The fields of `SearchOptions` and `CallOptions` are the table. argparse, the reading of
generation_config.json, the checks and the manual are made from `OPTIONS`. `TranslateOptions`
repeats names and types, since a type checker reads source code; a test holds it equal to the table.

This file knows values and no models: what depends on a model's size is checked by
`resolve_options`, which is told that size.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal

from m2m100_onnx._typing import TypedDict
from m2m100_onnx.errors import InvalidInputError

__all__ = [
    "OPTIONS",
    "READ_AHEAD",
    "CallOptions",
    "Option",
    "SearchOptions",
    "Settings",
    "TranslateOptions",
    "check_ids",
    "resolve_options",
]

READ_AHEAD = 256
"""Texts that a stream reads, sorts by length and translates together."""
_LONGEST_SHOWN = 200
_MOST_BEAMS = 1024
_MOST_TOKENS = 1 << 20
_LONGEST_WAIT = 1e8  # Three years: `time.monotonic` plus this is still exact to the microsecond.


@dataclass(frozen=True)
class Option:
    """One row of the table.

    Attributes:
        name: ours, in Python, and with dashes on the command line.
        type: as an annotation has it.
        default: what applies where neither the call nor the bundle says anything, as the published
            M2M100 checkpoints set it.
        help: one sentence.
        low: the least value, None where there is no number or no bound.
        high: the largest value.
        transformers: the name in transformers' `GenerationConfig`, None where it has none.
        silent: the value that transformers takes where a generation_config.json is there and does
            not name the option.
        ctranslate2: the name in CTranslate2's `translate_batch`.
        scope: `search` for what changes a translation, `call` for how a call is carried out.
    """

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    transformers: str | None = None
    silent: Any = None
    ctranslate2: str | None = None
    scope: Literal["search", "call"] = "search"

    @property
    def accepted(self) -> str:
        """What a value must be, in words."""
        kind = _KINDS[self.type][0]
        if self.low is None:
            return kind
        # Not `:,g`, which keeps six digits.
        low, high = (f"{n:,}" if isinstance(n, int) else f"{n:g}" for n in (self.low, self.high))
        return kind.replace("{range}", f"from {low} to {high}")

    def check(self, value: Any) -> Any:
        """Returns the value as plain Python, of the type that the table gives.

        Raises:
            InvalidInputError: the value has another type, or is out of range.
        """
        try:
            found = _KINDS[self.type][1](value)
            # Also false for NaN.
            inside = self.low is None or found is None or self.low <= found <= (self.high or 0)
        except (TypeError, ValueError, OverflowError):
            inside = False
        if not inside:
            raise InvalidInputError(f"{self.name}: expected {self.accepted}, found {_shown(value)}")
        return found


def _shown(value: Any) -> str:
    """Returns a value for an error, short enough to read."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write ints of more than 4,300 digits.
        return f"an int of {value.bit_length()} bits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _option(
    default: Any,
    help: str,  # noqa: A002 - the field's name
    bounds: tuple[float, float] | None = None,
    transformers: str | None = None,
    silent: Any = None,
    ctranslate2: str | None = None,
) -> Any:
    """A field of the table; the columns are those of `Option`."""
    low, high = bounds or (None, None)
    names = {"transformers": transformers, "silent": silent, "ctranslate2": ctranslate2}
    return field(default=default, metadata={"help": help, "low": low, "high": high, **names})


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # numpy's integers too


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def _bool(value: Any) -> bool:
    # numpy's bool is no bool, and its name is the same.
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _stopping(value: Any) -> bool | Literal["never"]:
    return "never" if isinstance(value, str) and value == "never" else _bool(value)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    ids = tuple(map(_int, value))
    if min(ids, default=0) < 0:
        raise ValueError
    return ids


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


# What a type is called in an error, and how a value of it is read.
_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "int": ("an int {range}", _int),
    "int | None": ("an int {range}, or None", _optional(_int)),
    "float": ("a number {range}", _float),
    "float | None": ("a number {range}, or None", _optional(_float)),
    "bool": ("True or False", _bool),
    "bool | Literal['never']": ('True, False or "never"', _stopping),
    "tuple[int, ...]": ("a list or tuple of token ids of 0 or more", _ids),
}


@dataclass(frozen=True)
class SearchOptions:
    """What to search for; each field means what it means in transformers' `GenerationConfig`.

    Defaults are those of the published M2M100 checkpoints. `OPTIONS` describes each field.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    beam_size: int = _option(
        5, "Beams per sentence; 1 is greedy search.", (1, _MOST_BEAMS), "num_beams", 1, "beam_size"
    )
    num_hypotheses: int = _option(
        1,
        "Translations to return per text, at most beam_size.",
        *((1, _MOST_BEAMS), "num_return_sequences", 1, "num_hypotheses"),
    )
    max_length: int = _option(
        200,
        "Most tokens of a translation; the start token and the language token count.",
        *((3, _MOST_TOKENS), "max_length", 20, "max_decoding_length"),
    )
    min_length: int = _option(
        0,
        "Fewest tokens of a translation before it may end; counts as max_length does.",
        *((0, _MOST_TOKENS), "min_length", 0, "min_decoding_length"),
    )
    length_penalty: float = _option(
        1.0,
        "Exponent of the length that divides a score; above 0 favours longer translations.",
        *((-100.0, 100.0), "length_penalty", 1.0, "length_penalty"),
    )
    early_stopping: bool | Literal["never"] = _option(
        True,
        "When a sentence is done: true at beam_size finished hypotheses, false when a better one "
        "is unlikely, never when a better one is impossible.",
        *(None, "early_stopping", False),
    )
    no_repeat_ngram_size: int = _option(
        0,
        "No sequence of this many tokens occurs twice; 0 allows all.",
        *((0, _MOST_TOKENS), "no_repeat_ngram_size", 0, "no_repeat_ngram_size"),
    )
    repetition_penalty: float = _option(
        1.0,
        "Above 1 makes tokens that occurred before less likely.",
        *((1e-30, 1e30), "repetition_penalty", 1.0, "repetition_penalty"),  # Scores are float32.
    )
    suppress_tokens: tuple[int, ...] = _option(
        (),
        "Token ids that never occur in a translation.",
        *(None, "suppress_tokens", (), "suppress_sequences"),
    )

    def __post_init__(self) -> None:
        _normalize(self)
        _at_most("num_hypotheses", self.num_hypotheses, "beam_size", self.beam_size)
        _at_most("min_length", self.min_length, "max_length", self.max_length)
        # Beyond 1e30 the length norm leaves float32, and the order of hypotheses is lost.
        bound = 30 / math.log10(self.max_length)
        if abs(self.length_penalty) > bound:
            raise InvalidInputError(
                f"length_penalty: expected a number from -{bound:.3g} to {bound:.3g} with "
                f"max_length = {self.max_length}, found {self.length_penalty!r}"
            )


@dataclass(frozen=True)
class CallOptions:
    """How a call is carried out; none of these changes a translation that is returned.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    max_batch_tokens: int = _option(
        4096,
        "Largest batch, as sentences * beam_size * longest source; one sentence is always taken.",
        *((1, 1 << 31), None, None, "max_batch_size"),
    )
    max_batch_bytes: int | None = _option(
        None,
        "Memory that a batch may reserve for keys, values and scores at max_length; a quarter of "
        "the machine's (or the container's) memory by default.",
        (1, 1 << 50),
    )
    truncate: bool = _option(
        False,
        "Cut texts that are longer than the model's positions; by default they are an error.",
        *(None, None, None, "max_input_length"),
    )
    timeout: float | None = _option(
        None,
        "Seconds after which the call ends with an error and what is translated by then.",
        (0.0, _LONGEST_WAIT),
    )

    def __post_init__(self) -> None:
        _normalize(self)


def _normalize(options: SearchOptions | CallOptions) -> None:
    for spec in fields(options):
        value = OPTIONS[spec.name].check(getattr(options, spec.name))
        object.__setattr__(options, spec.name, value)


def _at_most(name: str, value: int, limit_name: str, limit: int) -> None:
    if value > limit:
        raise InvalidInputError(f"{name}: expected at most {limit_name} = {limit}, found {value}")


_SCOPES: dict[Literal["search", "call"], type] = {"search": SearchOptions, "call": CallOptions}
OPTIONS: Mapping[str, Option] = {
    spec.name: Option(spec.name, str(spec.type), spec.default, scope=scope, **spec.metadata)
    for scope, options in _SCOPES.items()
    for spec in fields(options)
}
"""The table, in the order in which help and manual list it."""


class TranslateOptions(TypedDict, total=False):
    """Options of one translating call, which `OPTIONS` describes; the bundle has the others."""

    beam_size: int
    num_hypotheses: int
    max_length: int
    min_length: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: int
    repetition_penalty: float
    suppress_tokens: tuple[int, ...] | list[int]
    max_batch_tokens: int
    max_batch_bytes: int | None
    truncate: bool
    timeout: float | None


@dataclass(frozen=True)
class Settings:
    """A call's options, complete and checked."""

    search: SearchOptions
    call: CallOptions


_NO_SAMPLING = "there is no sampling: beam_size=1 is greedy search"
# What users of other tools try beyond the table's names, and what to do here.
_ELSEWHERE = {
    "max_new_tokens": "use max_length = max_new_tokens + 1, since the start token counts",
    "min_new_tokens": "use min_length = min_new_tokens + 1, since the start token counts",
    "max_decoding_length": "use max_length = max_decoding_length + 1, as the start token counts",
    "src_lang": "use source_lang",
    "tgt_lang": "use target_lang",
    "forced_bos_token_id": "use target_lang",
    "target_prefix": "use target_lang; a longer prefix is not supported",
    "decoder_start_token_id": "the bundle has it",
    "max_time": "use timeout",
    "bad_words_ids": "use suppress_tokens, which takes single tokens",
    "suppress_sequences": "use suppress_tokens, which takes single tokens",
    "max_input_length": "longer texts are an error, or cut with truncate=True",
    "skip_special_tokens": "they are always skipped",
    **dict.fromkeys(("batch_size", "batch_type"), "max_batch_tokens counts tokens"),
    **dict.fromkeys(("diversity_penalty", "coverage_penalty"), "not supported"),
    **dict.fromkeys(("return_scores", "output_scores"), "translate_batch returns scores"),
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p"), _NO_SAMPLING),
    **dict.fromkeys(("sampling_topk", "sampling_topp", "sampling_temperature"), _NO_SAMPLING),
}


def _elsewhere(name: str) -> str:
    """Names an unknown option, and ours in its place where there is one."""
    if name in _ELSEWHERE:
        return f"{name} ({_ELSEWHERE[name]})"
    for row in OPTIONS.values():
        if name in (row.transformers, row.ctranslate2):
            return f"{name} (use {row.name})"
    near = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.8)
    return f"{name} (did you mean {near[0]}?)" if near else name


def check_ids(search: SearchOptions, vocab_size: int) -> None:
    """Raises `InvalidInputError` if a suppressed token is not one of the model's."""
    wrong = [token for token in search.suppress_tokens if token >= vocab_size]
    if wrong:
        raise InvalidInputError(
            f"suppress_tokens: expected ids from 0 to {vocab_size - 1}, found {wrong[0]}"
        )


def resolve_options(
    options: Mapping[str, Any], defaults: SearchOptions, positions: int, vocab_size: int
) -> Settings:
    """Completes and checks a call's options.

    Args:
        options: what the call gave.
        defaults: search options where it gave none.
        positions: the most tokens that the model's decoder takes.
        vocab_size: the number of the model's tokens.

    Raises:
        InvalidInputError: a value is out of range.
        TypeError: there is no such option.
    """
    given = dict(options)
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise TypeError(f"unknown option: {', '.join(map(_elsewhere, unknown))}")
    values = {name: OPTIONS[name].check(value) for name, value in given.items()}
    # What was not asked for gives way to what was.
    for name, limit in (("num_hypotheses", "beam_size"), ("min_length", "max_length")):
        if name not in values and limit in values:
            values[name] = min(getattr(defaults, name), values[limit])
    call = {name: values.pop(name) for name in tuple(values) if OPTIONS[name].scope == "call"}
    search = replace(defaults, **values)
    if search.max_length > positions:
        raise InvalidInputError(
            f"max_length: expected at most the model's {positions} positions, "
            f"found {search.max_length}"
        )
    check_ids(search, vocab_size)
    return Settings(search, CallOptions(**call))
