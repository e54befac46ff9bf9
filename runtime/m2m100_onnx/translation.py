"""What a translating call returns: translations and their hypotheses."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EMPTY", "Hypothesis", "Translation"]


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: sum of its tokens' log-probabilities over `(len(tokens) - 1) ** length_penalty`.
        tokens: the decoder's whole sequence as transformers' `generate` returns it, without
            padding: start token, language token, the text, and `</s>` unless max_length cut it.
    """

    text: str
    score: float
    tokens: tuple[int, ...]


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


EMPTY = Translation("", 0.0, (), ())
"""What a text without words is translated to."""
