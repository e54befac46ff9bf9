"""What a translating call returns: translations and their hypotheses."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["EMPTY", "Alternative", "Hypothesis", "Translation"]


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: sum of its tokens' log-probabilities over `(len(tokens) - 1) ** length_penalty`.
        tokens: the decoder's whole sequence as transformers' `generate` returns it, without
            padding: start token, language token, the text, and `</s>` unless max_length cut it.
        token_log_probs: the log-probability of each token that the search chose: those of `tokens`
            after the language token and a prefix. In beam search they are the model's, after
            penalties; in greedy search and sampling the tokens that are not banned share all
            probability.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    token_log_probs: tuple[float, ...] = ()

    @property
    def mean_log_prob(self) -> float:
        """Mean of `token_log_probs`: how sure the model is of the whole; NaN without tokens."""
        found = self.token_log_probs
        return math.fsum(found) / len(found) if found else math.nan

    @property
    def min_log_prob(self) -> float:
        """Least of `token_log_probs`: how sure it is of the token it doubts most; NaN without."""
        return min(self.token_log_probs, default=math.nan)


@dataclass(frozen=True)
class Translation:
    """The translation of a text: its best hypothesis, and all hypotheses.

    Attributes:
        text: the best translation; empty if the source has nothing to translate.
        score: its score, see `Hypothesis`; 0.0 for an empty source.
        tokens: its tokens, see `Hypothesis`.
        hypotheses: `num_hypotheses` of them, best first; none for an empty source.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    hypotheses: tuple[Hypothesis, ...]


@dataclass(frozen=True)
class Alternative:
    """A way in which a translation may go on.

    Attributes:
        piece: the next token as a piece of text, with `▁` where a word begins.
        token: its id.
        probability: of this token, after the prefix.
        translation: the translation that begins with the prefix and this token.
    """

    piece: str
    token: int
    probability: float
    translation: Translation


EMPTY = Translation("", 0.0, (), ())
"""What a text without words is translated to."""
