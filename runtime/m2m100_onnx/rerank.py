"""Orders the hypotheses of a translation by how fluent a language model finds them.

Knows translations and scores; knows neither the translator nor the model behind the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.inputs import Prefix, Prefixes, TermLists
from m2m100_onnx.options import TranslateOptions
from m2m100_onnx.scores import Score
from m2m100_onnx.translation import Hypothesis, Translation

__all__ = ["DEFAULT_WEIGHT", "Reranker", "Scorer", "TranslateArguments", "as_reranker"]

DEFAULT_WEIGHT = 0.05
"""The weight of fluency; docs/language-models.md has the measurement."""


@runtime_checkable
class Scorer(Protocol):
    """What scores texts, such as a `LanguageModel`."""

    def score(self, texts: Sequence[str], *, language: str) -> list[Score]:
        """Returns how likely each text is."""
        ...


@dataclass(frozen=True)
class Reranker:
    """Orders hypotheses by `score + weight * fluency`.

    `score` is the hypothesis's own, and fluency the mean log-probability of a token in the language
    model. Both are means over tokens, so lengths do not decide. What is equal keeps its order.

    Attributes:
        model: scores texts.
        weight: the weight of fluency, 0 or more.
        languages: the model's codes of languages, by the translator's where they differ.

    Raises:
        InvalidInputError: `weight` is no number of 0 or more.
    """

    model: Scorer
    weight: float = DEFAULT_WEIGHT
    languages: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weight = self.weight
        right = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not right or not 0 <= weight < math.inf:
            raise InvalidInputError(f"weight: expected a number of 0 or more, found {weight!r}")

    def order(
        self, translations: Sequence[Translation], languages: Sequence[str]
    ) -> list[Translation]:
        """Returns translations whose hypotheses are ordered anew, best first.

        Args:
            translations: with several hypotheses each; one hypothesis stays as it is.
            languages: the language of each, by the translator's codes.

        Raises:
            UnknownLanguageError: the model lacks a language.
            InputTooLongError: a hypothesis has more tokens than the model has positions; its
                `position` is that of the translation.
        """
        found = list(translations)
        for language in dict.fromkeys(languages):
            places = [
                n
                for n, code in enumerate(languages)
                if code == language and len(found[n].hypotheses) > 1
            ]
            owners = [n for n in places for _ in found[n].hypotheses]
            texts = [h.text for n in places for h in found[n].hypotheses]
            code = self.languages.get(language, language)
            try:
                scores = iter(self.model.score(texts, language=code) if texts else [])
            except M2M100Error as error:
                if error.position is not None:
                    error.position = owners[error.position]
                raise
            for n in places:
                some = [(h, next(scores)) for h in found[n].hypotheses]
                some.sort(key=lambda pair: -self._value(*pair))
                ordered = tuple(hypothesis for hypothesis, _ in some)
                best = ordered[0]
                found[n] = Translation(best.text, best.score, best.tokens, ordered)
        return found

    def _value(self, hypothesis: Hypothesis, score: Score) -> float:
        # A masked model has no tokens to score in an empty text.
        fluency = score.mean if score.token_log_probs else 0.0
        return hypothesis.score + self.weight * fluency


class TranslateArguments(TranslateOptions, total=False):
    """Options of one call, what translations begin with and contain, and what orders them."""

    rerank: Reranker | Scorer | None
    target_prefix: Prefix | Prefixes
    terms: TermLists
    max_new_tokens: int | None
    min_new_tokens: int | None


def as_reranker(value: object) -> Reranker | None:
    """Returns the reranker that a call was given, or the one of a language model.

    Raises:
        InvalidInputError: it is something else.
    """
    if value is None or isinstance(value, Reranker):
        return value
    if not callable(getattr(value, "score", None)):
        kind = type(value).__name__
        raise InvalidInputError(f"rerank: expected a Reranker or a LanguageModel, found {kind}")
    return Reranker(cast("Scorer", value))
