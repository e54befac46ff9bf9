"""One row of the table of options: its columns, and how a value of each type is read and checked.

Knows values; knows no row, no model and no call. `options.py` has the table.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from m2m100_onnx.errors import InvalidInputError

__all__ = ["Option", "elsewhere", "option"]

_LONGEST_SHOWN = 200


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


def option(
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


def _sequences(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    sequences = tuple(each if isinstance(each, str) else _ids(each) for each in value)
    if not all(sequences):
        raise ValueError
    return sequences


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
    "tuple[str | tuple[int, ...], ...]": (
        "a list of str, or of lists or tuples of token ids of 0 or more, none of them empty",
        _sequences,
    ),
    "tuple[int, ...]": ("a list or tuple of token ids of 0 or more", _ids),
}


# What users of other tools try beyond the table's names, and what to do here.
_ELSEWHERE = {
    "max_decoding_length": "use max_length = max_decoding_length + 1, as the start token counts",
    "src_lang": "use source_lang",
    "tgt_lang": "use target_lang",
    "forced_bos_token_id": "use target_lang",
    "decoder_start_token_id": "the bundle has it",
    "max_time": "use timeout",
    "max_input_length": "longer texts are an error, or cut with truncate=True",
    "skip_special_tokens": "they are always skipped",
    **dict.fromkeys(("batch_size", "batch_type"), "max_batch_tokens counts tokens"),
    "coverage_penalty": "not supported",
    "output_attentions": "use alignments",
    **dict.fromkeys(("return_scores", "output_scores"), "translate_batch returns scores"),
}


def elsewhere(name: str, table: Mapping[str, Option]) -> str:
    """Names an unknown option, and the one of a table in its place where there is one."""
    if name in _ELSEWHERE:
        return f"{name} ({_ELSEWHERE[name]})"
    for row in table.values():
        if name in (row.transformers, row.ctranslate2):
            return f"{name} (use {row.name})"
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.8)
    return f"{name} (did you mean {near[0]}?)" if near else name
