"""Carries out the calls of a language model: reads texts, and runs what they ask for.

Knows texts, tokens and languages; leaves batches to `engine/` and arguments to the face.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m2m100_onnx.engine.batches import Prompts, cut_prompts
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.reader import Reader
from m2m100_onnx.engine.stopping import Cancellation, Stop
from m2m100_onnx.errors import InputTooLongError, InvalidInputError
from m2m100_onnx.inputs import check_languages, check_texts, located
from m2m100_onnx.model.causal import LanguageGraphs
from m2m100_onnx.options import Option, SearchOptions, Settings, resolve_options
from m2m100_onnx.scores import Filling, Generation, Score
from m2m100_onnx.search.demands import Demands
from m2m100_onnx.search.hypothesis import Hypothesis as Tokens
from m2m100_onnx.search.state import Float32Array
from m2m100_onnx.text.stops import Stops
from m2m100_onnx.text.xlm import XLMTokenizer
from m2m100_onnx.translation import Hypothesis

__all__ = ["LanguageCall", "LanguageWorker", "Row"]

_NEW_TOKENS = Option("max_new_tokens", "int | None", None, "Most new tokens.", 1, 1 << 20)
_DEFAULT_RULES = "en"
"""The language whose rules split words where none is given, as in transformers."""


@dataclass(frozen=True)
class Row:
    """A text as the model reads it.

    Attributes:
        ids: its tokens, control tokens included.
        lang: its language id.
    """

    ids: list[int]
    lang: int


@dataclass(frozen=True)
class LanguageCall:
    """How one call is carried out.

    Attributes:
        settings: its options.
        stop: whether it must end.
        max_new_tokens: the most tokens after a prompt; None where `max_length` counts all.
    """

    settings: Settings
    stop: Stop
    max_new_tokens: int | None = None


class LanguageWorker:
    """Reads texts and goes on from them."""

    def __init__(
        self, tokenizer: XLMTokenizer, model: LanguageGraphs, gate: Gate, defaults: SearchOptions
    ) -> None:
        """Takes the parts.

        Args:
            tokenizer: text to ids and back.
            model: the graphs.
            gate: lets no call in when the model is closed.
            defaults: search options where a call gives none.
        """
        self._tokenizer, self._gate, self._defaults = tokenizer, gate, defaults
        self._bundle, self._config = model.bundle, model.bundle.config
        self._model, self._reader, self._generator = model, Reader(model), Generator(model)

    def begin(
        self,
        options: Mapping[str, Any],
        cancellation: Cancellation | None,
        max_new_tokens: int | None = None,
    ) -> LanguageCall:
        """Returns a call that has begun, with its arguments checked."""
        self._gate.check()
        positions, vocab_size = self._config.max_position_embeddings, self._config.vocab_size
        settings = resolve_options(options, self._defaults, positions, vocab_size)
        _refuse_words(settings.search)
        new = _NEW_TOKENS.check(max_new_tokens)
        if new is not None and "max_length" in options:
            raise InvalidInputError(
                "max_new_tokens: expected either it or max_length, found both; max_length counts "
                "the prompt too"
            )
        return LanguageCall(settings, Stop(settings.call.timeout, cancellation), new)

    def rows(
        self,
        texts: str | Sequence[str],
        language: str | Sequence[str] | None,
        call: LanguageCall,
        *,
        is_prompt: bool = False,
    ) -> list[Row]:
        """Returns the tokens of one text or of several.

        An error about one of several texts has its position.
        """
        if isinstance(texts, str):
            return [self.row(texts, language, call, is_prompt=is_prompt)]
        check_texts(texts)
        texts = list(texts)
        languages: Iterable[Any] = itertools.repeat(language)
        if language is not None and not isinstance(language, str):
            check_languages(len(texts), language=language)
            languages = language
        found = []
        for position, (text, code) in enumerate(zip(texts, languages, strict=False)):
            if call.stop.reached:
                raise call.stop.error({})
            with located(position):
                found.append(self.row(text, code, call, is_prompt=is_prompt))
        return found

    def row(
        self,
        text: object,
        language: object,
        call: LanguageCall,
        *,
        is_prompt: bool = False,
        mask: bool = False,
    ) -> Row:
        """Returns a text's tokens: `<s>`, pieces and, unless it is a prompt, `</s>`."""
        if not isinstance(text, str):
            raise InvalidInputError(f"expected a str, found {type(text).__name__}")
        rules, lang = self._language(language)
        ids = self._tokenizer.encode(text, rules, mask=mask)
        limit = self._config.max_position_embeddings
        end = [] if is_prompt else [self._tokenizer.eos_id]
        ids = [*ids[:-1], *end]
        if len(ids) > limit:
            if not call.settings.call.truncate:
                raise InputTooLongError(limit, len(ids), text)
            ids = [*ids[: limit - len(end)], *end]
        return Row(ids, lang)

    def scores(self, rows: Sequence[Row], call: LanguageCall) -> list[Score]:
        """Returns the score of each text."""
        causal = self._config.causal
        read = self._reader.log_probs if causal else self._reader.masked_log_probs
        with self._gate.call():
            found = read(*_columns(rows), call.settings.call, call.stop)
        scores = {n: self._score(rows[n].ids, v) for n, v in found.items()}
        return call.stop.complete(scores, len(rows))

    def _score(self, ids: list[int], log_probs: Float32Array) -> Score:
        tokens = ids[1:] if self._config.causal else ids[1:-1]
        pieces = self._tokenizer.ids_to_pieces(tokens)
        return Score(tuple(tokens), tuple(pieces), tuple(log_probs.tolist()))

    def vectors(self, rows: Sequence[Row], pooling: str, call: LanguageCall) -> list[Float32Array]:
        """Returns the vector `(D,)` of each text."""
        with self._gate.call():
            ids, langs = _columns(rows)
            found = self._reader.vectors(ids, langs, pooling, call.settings.call, call.stop)
        return call.stop.complete(found, len(rows))

    def fill(self, text: str, language: str | None, count: int) -> list[list[Filling]]:
        """Returns the likeliest tokens for each mask of a text."""
        row = self.row(text, language, self.begin({}, None), mask=True)
        mask_id = self._tokenizer.mask_id
        masks = [n for n, token in enumerate(row.ids) if token == mask_id]
        if not masks:
            raise InvalidInputError(
                f"text: expected {self._tokenizer.mask_token!r} where a token is to be found, "
                f"found {text!r}"
            )
        with self._gate.call():
            found = self._reader.candidates(row.ids, row.lang, masks, count)
        return [
            [
                self._filling(row.ids, at, token, score)
                for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)
            ]
            for at, (tokens, scores) in zip(masks, found, strict=True)
        ]

    def _filling(self, row: list[int], at: int, token: int, score: float) -> Filling:
        text = self._tokenizer.decode([*row[:at], token, *row[at + 1 :]])
        (piece,) = self._tokenizer.ids_to_pieces([token])
        return Filling(text, piece, token, score)

    def generate(self, rows: Sequence[Row], call: LanguageCall) -> list[Generation]:
        """Goes on from each prompt."""
        if not self._config.can_generate:
            kind = "a masked one" if self._config.has_head else "one without an LM head"
            raise InvalidInputError(
                f"generate: expected a causal language model, found {kind}; a causal checkpoint "
                "whose config.json does not say so is exported with causal=True (--causal true)"
            )
        for position, row in enumerate(rows):
            with located(position):
                self._check_room(row, call)
        found: dict[int, Generation] = {}
        sequences = call.settings.search.stop_sequences
        ends = Stops(sequences) if sequences else None
        with self._gate.call():
            for batch, settings in self._batches(rows, call):
                prompts = Prompts(
                    np.array([rows[n].ids for n in batch], np.int64),
                    np.array([rows[n].lang for n in batch], np.int64),
                    Demands(ends=ends),
                )
                hypotheses = self._generator.run(prompts, settings.search, call.stop)
                for n, some in zip(batch, hypotheses, strict=True):
                    if some is not None:
                        found[n] = self._generation(some)
        return call.stop.complete(found, len(rows))

    def _check_room(self, row: Row, call: LanguageCall) -> None:
        """Raises `InvalidInputError` if a prompt leaves no room for a token."""
        longest = call.settings.search.max_length
        if call.max_new_tokens is not None:
            longest = self._config.max_position_embeddings
        if call.max_new_tokens == 1 and len(row.ids) == 1:
            # `max_length` counts three tokens at least, as a translation has.
            raise InvalidInputError("max_new_tokens: expected 2 or more for an empty prompt")
        if len(row.ids) >= longest:
            raise InvalidInputError(
                f"prompt: expected fewer than {longest} tokens, which max_length or the model's "
                f"positions allow, found {len(row.ids)}"
            )

    def _batches(
        self, rows: Sequence[Row], call: LanguageCall
    ) -> Iterator[tuple[list[int], Settings]]:
        """Yields prompts of one length, with the options for that length."""
        ids = [row.ids for row in rows]
        for batch in cut_prompts(ids, call.settings, self._model.cache_bytes):
            settings = call.settings
            if call.max_new_tokens is not None:
                longest = len(ids[batch[0]]) + call.max_new_tokens
                longest = min(longest, self._config.max_position_embeddings)
                least = min(settings.search.min_length, longest)
                search = replace(settings.search, max_length=longest, min_length=least)
                settings = replace(settings, search=search)
            yield batch, settings

    def _generation(self, hypotheses: Sequence[Tokens]) -> Generation:
        decoded = tuple(
            Hypothesis(self._tokenizer.decode(h.tokens), h.score, h.tokens, h.log_probs)
            for h in hypotheses
        )
        best = decoded[0]
        return Generation(best.text, best.score, best.tokens, decoded)

    def _language(self, language: object) -> tuple[str, int]:
        """Returns the language whose rules split words, and the language id."""
        count = self._config.languages
        if language is not None and not isinstance(language, str):
            raise InvalidInputError(f"language: expected a code, found {type(language).__name__}")
        if not count:
            return language or _DEFAULT_RULES, 0
        codes = self._tokenizer.languages
        if not codes:
            raise InvalidInputError(
                f"language: expected lang2id in tokenizer_config.json or config.json of "
                f"{self._bundle.directory}, found none, so no language has an id; `logits` takes "
                "ids of languages"
            )
        if language is None:
            raise InvalidInputError(
                f"language: expected one of {', '.join(codes)}, since the model has an embedding "
                "for each, found None"
            )
        return language, self._tokenizer.language_id(language)


def _columns(rows: Sequence[Row]) -> tuple[list[list[int]], list[int]]:
    return [row.ids for row in rows], [row.lang for row in rows]


def _refuse_words(search: SearchOptions) -> None:
    """Raises `InvalidInputError` for options of a translation."""
    for name in ("alignments", "replace_unknowns"):
        if getattr(search, name):
            raise InvalidInputError(
                f"{name}: expected a translation, which has a source, found a text of a language "
                "model"
            )
    for name in ("suppress_sequences", "stop_sequences"):
        if words := [each for each in getattr(search, name) if isinstance(each, str)]:
            raise InvalidInputError(
                f"{name}: expected token ids for a language model, found {words[0]!r}"
            )
    if search.max_length_ratio is not None:
        raise InvalidInputError(
            "max_length_ratio: expected a translation, whose source has a length, found a text of "
            "a language model; use max_length or max_new_tokens"
        )
