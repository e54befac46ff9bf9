"""What a translate call may ask for, and what it gets where it asks for nothing.

Knows the options' names here and in config files; the search checks their values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from m2m100_onnx.bundle import CONFIG_FILE, GENERATION_CONFIG_FILE, Bundle
from m2m100_onnx.decoding import SearchOptions
from m2m100_onnx.errors import BundleError, InvalidInputError

__all__ = ["READ_AHEAD", "Settings", "TranslateOptions", "default_options", "resolve_options"]

# What config files call the options, and what M2M100 checkpoints set where a config says nothing.
_CONFIG_NAMES = {"num_beams": "beam_size", "num_return_sequences": "num_hypotheses"}
_FALLBACK = {"beam_size": 5, "max_length": 200, "early_stopping": True}
_MAX_BATCH_TOKENS = 4096
READ_AHEAD = 256


class TranslateOptions(TypedDict, total=False):
    """Options of one translate call; what is left out comes from the bundle's generation config.

    Attributes:
        beam_size: hypotheses kept a sentence; 1 is greedy search.
        num_hypotheses: how many of them to return, at most `beam_size`.
        max_length: most decoder tokens; as in transformers, start and language token count.
        min_length: fewest decoder tokens before `</s>` may come, counted likewise.
        length_penalty: exponent of the length in a hypothesis' score; above 0 favours longer ones.
        early_stopping: when a sentence is done: True, as soon as `beam_size` hypotheses ended;
            False, when the best running one looks unable to beat them; "never", when it cannot.
        no_repeat_ngram_size: no token sequence of this length comes twice; 0 allows all.
        repetition_penalty: above 1 makes tokens that were used before less likely.
        suppress_tokens: ids that never come.
        max_batch_tokens: a batch is cut so that `sentences * beam_size * longest source` stays
            below this, a source counting at least 32 tokens; one sentence is always taken.
        truncate: cut texts that are longer than the model's positions, instead of raising.
    """

    beam_size: int
    num_hypotheses: int
    max_length: int
    min_length: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: int
    repetition_penalty: float
    suppress_tokens: tuple[int, ...]
    max_batch_tokens: int
    truncate: bool


@dataclass(frozen=True)
class Settings:
    """A call's options, complete and checked."""

    search: SearchOptions
    max_batch_tokens: int
    truncate: bool


def default_options(bundle: Bundle) -> SearchOptions:
    """What the bundle's generation config asks for, never more tokens than the model has positions.

    Raises:
        BundleError: the config asks for something that cannot be.
    """
    values: dict[str, Any] = dict(_FALLBACK)
    values.update({_CONFIG_NAMES.get(k, k): v for k, v in bundle.generation.items()})
    try:
        if "max_new_tokens" in values:  # Beyond the start token, and before max_length.
            values["max_length"] = values.pop("max_new_tokens") + 1
        values["suppress_tokens"] = tuple(values.get("suppress_tokens", ()))
        values["max_length"] = min(values["max_length"], bundle.config.max_position_embeddings)
        return SearchOptions(**values)
    except (InvalidInputError, TypeError) as error:
        path = bundle.directory / GENERATION_CONFIG_FILE
        path = path if path.exists() else bundle.directory / CONFIG_FILE
        raise BundleError(f"{path}: {error}") from None


def resolve_options(options: TranslateOptions, defaults: SearchOptions, positions: int) -> Settings:
    """Completes and checks a call's options.

    Args:
        options: what the call gave.
        defaults: search options where it gave none.
        positions: the most tokens the model's decoder takes.

    Raises:
        InvalidInputError: a value is out of range.
        TypeError: there is no such option.
    """
    given: dict[str, Any] = dict(options)
    max_batch_tokens = given.pop("max_batch_tokens", _MAX_BATCH_TOKENS)
    if type(max_batch_tokens) is not int or max_batch_tokens < 1:
        raise InvalidInputError(f"max_batch_tokens: expected 1 or more, found {max_batch_tokens!r}")
    truncate = given.pop("truncate", False)
    if not isinstance(truncate, bool):
        raise InvalidInputError(f"truncate: expected True or False, found {truncate!r}")
    names = {field.name for field in dataclasses.fields(SearchOptions)}
    if unknown := sorted(set(given) - names):
        raise TypeError(f"unknown option {', '.join(unknown)}; see TranslateOptions")
    # What was not asked for gives way to what was.
    for name, limit in (("num_hypotheses", "beam_size"), ("min_length", "max_length")):
        most = given.get(limit)
        if name not in given and type(most) is int and most > 0:
            given[name] = min(getattr(defaults, name), most)
    search = dataclasses.replace(defaults, **given)
    if search.max_length > positions:
        raise InvalidInputError(
            f"max_length: the model has {positions} positions, found {search.max_length}"
        )
    return Settings(search, max_batch_tokens, truncate)
