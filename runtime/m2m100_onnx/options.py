"""Every option of a translating call, once: name, type, range, default, other tools' names, help.

The fields of `SearchOptions` and `CallOptions` are the table. argparse, the reading of
generation_config.json, the checks and the manual are made from `OPTIONS`. `TranslateOptions`
repeats names and types, since a type checker reads source code; a test holds it equal to the table.

This file knows values and no models: what depends on a model's size is checked by
`resolve_options`, which is told that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from m2m100_onnx._typing import TypedDict
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.option import Option, elsewhere, option

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
_MOST_BEAMS = 1024
_MOST_TOKENS = 1 << 20
_LONGEST_WAIT = 1e8  # Three years: `time.monotonic` plus this is still exact to the microsecond.


@dataclass(frozen=True)
class SearchOptions:
    """What to search for; each field means what it means in transformers' `GenerationConfig`.

    Defaults are those of the published M2M100 checkpoints. `OPTIONS` describes each field.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    beam_size: int = option(
        5, "Beams per sentence; 1 is greedy search.", (1, _MOST_BEAMS), "num_beams", 1, "beam_size"
    )
    num_hypotheses: int = option(
        1,
        "Translations to return per text, at most beam_size.",
        *((1, _MOST_BEAMS), "num_return_sequences", 1, "num_hypotheses"),
    )
    max_length: int = option(
        200,
        "Most tokens of a translation; the start token and the language token count.",
        *((3, _MOST_TOKENS), "max_length", 20, "max_decoding_length"),
    )
    min_length: int = option(
        0,
        "Fewest tokens of a translation before it may end; counts as max_length does.",
        *((0, _MOST_TOKENS), "min_length", 0, "min_decoding_length"),
    )
    length_penalty: float = option(
        1.0,
        "Exponent of the length that divides a score; above 0 favours longer translations.",
        *((-100.0, 100.0), "length_penalty", 1.0, "length_penalty"),
    )
    early_stopping: bool | Literal["never"] = option(
        True,
        "When a sentence is done: true at beam_size finished hypotheses, false when a better one "
        "is unlikely, never when a better one is impossible.",
        *(None, "early_stopping", False),
    )
    patience: float = option(
        1.0,
        "A sentence is done at beam_size * patience finished hypotheses, with early_stopping.",
        *((1.0, 100.0), None, None, "patience"),
    )
    num_beam_groups: int = option(
        1,
        "Groups of beams in diverse beam search; 1 is beam search.",
        *((1, _MOST_BEAMS), "num_beam_groups", 1),
    )
    diversity_penalty: float = option(
        0.0,
        "What a token costs for each beam of an earlier group that chose it in the same step.",
        *((0.0, 1e3), "diversity_penalty", 0.0),
    )
    max_length_ratio: float | None = option(
        None,
        "Most pieces of a translation for each piece of its source, rounded up.",
        (1e-3, 1e3),
    )
    stop_sequences: tuple[str | tuple[int, ...], ...] = option(
        (),
        "Texts and sequences of token ids; a translation ends with the first of them.",
        *(None, "stop_strings", (), "end_token"),
    )
    no_repeat_ngram_size: int = option(
        0,
        "No sequence of this many tokens occurs twice; 0 allows all.",
        *((0, _MOST_TOKENS), "no_repeat_ngram_size", 0, "no_repeat_ngram_size"),
    )
    repetition_penalty: float = option(
        1.0,
        "Above 1 makes tokens that occurred before less likely.",
        *((1e-30, 1e30), "repetition_penalty", 1.0, "repetition_penalty"),  # Scores are float32.
    )
    suppress_tokens: tuple[int, ...] = option(
        (),
        "Token ids that never occur in a translation.",
        *(None, "suppress_tokens", ()),
    )
    suppress_sequences: tuple[str | tuple[int, ...], ...] = option(
        (),
        "Words and sequences of token ids that never occur in a translation.",
        *(None, "bad_words_ids", (), "suppress_sequences"),
    )
    disable_unk: bool = option(
        False,
        "The unknown token never occurs in a translation.",
        *(None, None, None, "disable_unk"),
    )
    replace_unknowns: bool = option(
        False,
        "Put the source word that is attended to most in the place of an unknown token.",
        *(None, None, None, "replace_unknowns"),
    )
    alignments: bool = option(
        False,
        "Say for each translation which of its words stand for which words of the source.",
        *(None, None, None, "return_attention"),
    )
    do_sample: bool = option(
        False,
        "Draw each token at random by its probability, num_hypotheses times; beam_size is 1 then.",
        *(None, "do_sample", False),
    )
    temperature: float = option(
        1.0,
        "Divides log-probabilities before a token is drawn; below 1 favours likely tokens.",
        *((1e-3, 1e3), "temperature", 1.0, "sampling_temperature"),
    )
    top_k: int = option(
        50,
        "A token is drawn from this many of the likeliest; 0 is from all, which is slower.",
        *((0, _MOST_TOKENS), "top_k", 50, "sampling_topk"),
    )
    top_p: float = option(
        1.0,
        "A token is drawn from the likeliest that together have this probability.",
        *((1e-6, 1.0), "top_p", 1.0, "sampling_topp"),
    )
    min_p: float = option(
        0.0,
        "A token is drawn from those at least this likely, relative to the likeliest.",
        *((0.0, 1.0), "min_p", 0.0),
    )
    seed: int | None = option(
        None,
        "Makes what is drawn reproducible, for a text alone and in any batch.",
        (0, (1 << 63) - 1),
    )

    def __post_init__(self) -> None:
        _normalize(self)
        if self.do_sample and self.beam_size > 1:
            raise InvalidInputError(
                "do_sample: expected beam_size = 1 with it, since the beams of a search are not "
                f"drawn, found {self.beam_size}"
            )
        if not self.do_sample:
            _at_most("num_hypotheses", self.num_hypotheses, "beam_size", self.beam_size)
        self._check_groups()
        _at_most("min_length", self.min_length, "max_length", self.max_length)
        if self.patience != 1 and (self.early_stopping is not True or self.beam_size == 1):
            raise InvalidInputError(
                "patience: expected early_stopping = True and beam_size above 1 with it, found "
                f"early_stopping = {self.early_stopping!r} and beam_size = {self.beam_size}"
            )
        # Beyond 1e30 the length norm leaves float32, and the order of hypotheses is lost.
        bound = 30 / math.log10(self.max_length)
        if abs(self.length_penalty) > bound:
            raise InvalidInputError(
                f"length_penalty: expected a number from -{bound:.3g} to {bound:.3g} with "
                f"max_length = {self.max_length}, found {self.length_penalty!r}"
            )

    def _check_groups(self) -> None:
        groups, penalty = self.num_beam_groups, self.diversity_penalty
        if self.beam_size % groups:
            raise InvalidInputError(
                f"num_beam_groups: expected a divisor of beam_size = {self.beam_size}, "
                f"found {groups}"
            )
        if (groups > 1) != (penalty > 0):
            raise InvalidInputError(
                "diversity_penalty: expected a number above 0 with num_beam_groups above 1, and 0 "
                f"without, found {penalty!r} with num_beam_groups = {groups}"
            )

    @property
    def group_size(self) -> int:
        """Beams of a group."""
        return self.beam_size // self.num_beam_groups

    @property
    def rows(self) -> int:
        """Decoder rows of a sentence: its beams, or its samples."""
        return self.num_hypotheses if self.do_sample else self.beam_size

    @property
    def wanted(self) -> int:
        """Finished hypotheses at which a group of beams is done; halves are rounded up.

        Source: "Beam Decoding with Controlled Patience", https://arxiv.org/abs/2204.05424.
        """
        return math.floor(self.group_size * self.patience + 0.5)


@dataclass(frozen=True)
class CallOptions:
    """How a call is carried out; none of these changes a translation that is returned.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range.
    """

    max_batch_tokens: int = option(
        4096,
        "Largest batch, as sentences * beam_size * longest source; one sentence is always taken.",
        *((1, 1 << 31), None, None, "max_batch_size"),
    )
    max_batch_bytes: int | None = option(
        None,
        "Memory that a batch may reserve for keys, values and scores at max_length; a quarter of "
        "the machine's (or the container's) memory by default.",
        (1, 1 << 50),
    )
    truncate: bool = option(
        False,
        "Cut texts that are longer than the model's positions; by default they are an error.",
        *(None, None, None, "max_input_length"),
    )
    timeout: float | None = option(
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
    patience: float
    num_beam_groups: int
    diversity_penalty: float
    max_length_ratio: float | None
    stop_sequences: Sequence[str | Sequence[int]]
    no_repeat_ngram_size: int
    repetition_penalty: float
    suppress_tokens: tuple[int, ...] | list[int]
    suppress_sequences: Sequence[str | Sequence[int]]
    disable_unk: bool
    replace_unknowns: bool
    alignments: bool
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    max_batch_tokens: int
    max_batch_bytes: int | None
    truncate: bool
    timeout: float | None


@dataclass(frozen=True)
class Settings:
    """A call's options, complete and checked."""

    search: SearchOptions
    call: CallOptions


def check_ids(search: SearchOptions, vocab_size: int) -> None:
    """Raises `InvalidInputError` if a suppressed token is not one of the model's."""
    every = {
        "suppress_tokens": search.suppress_tokens,
        **{
            name: tuple(t for each in sequences if not isinstance(each, str) for t in each)
            for name, sequences in (
                ("suppress_sequences", search.suppress_sequences),
                ("stop_sequences", search.stop_sequences),
            )
        },
    }
    for name, ids in every.items():
        wrong = [token for token in ids if token >= vocab_size]
        if wrong:
            raise InvalidInputError(
                f"{name}: expected ids from 0 to {vocab_size - 1}, found {wrong[0]}"
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
        raise TypeError(
            f"unknown option: {', '.join(elsewhere(name, OPTIONS) for name in unknown)}"
        )
    values = {name: OPTIONS[name].check(value) for name, value in given.items()}
    # What was not asked for gives way to what was.
    if values.get("do_sample"):
        values.setdefault("beam_size", 1)
    elif values.get("beam_size", 1) > 1:
        values.setdefault("do_sample", False)
    grouped = {"num_beam_groups", "diversity_penalty"} & {*values}
    if not grouped and values.get("beam_size", defaults.beam_size) % defaults.num_beam_groups:
        values |= {"num_beam_groups": 1, "diversity_penalty": 0.0}
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
