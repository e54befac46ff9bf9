"""What a translating call returns: translations and their hypotheses."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["EMPTY", "Alignment", "AlignmentHeads", "Alternative", "Hypothesis", "Translation"]


@dataclass(frozen=True)
class AlignmentHeads:
    """Whose attention aligns words.

    Attributes:
        layer: of the decoder, from 0; below 0 from the last.
        heads: of that layer, from 0; their mean counts.
        fed: whether a word's attention is that of the steps that its tokens are fed to, in which
            the decoder knows them; else that of the steps which predict them.
    """

    layer: int
    heads: tuple[int, ...]
    fed: bool = True


@dataclass(frozen=True)
class Alignment:
    """Which words of a translation stand for which words of its source.

    Attributes:
        source_words: words and punctuation marks of the source.
        target_words: those of the translation.
        matrix: how much attention each target word pays to each source word, `(T, S)` as rows. What
            is left of 1 is on the source's language token and `</s>`.
        pairs: places of a source word and a target word that belong together, by target word: those
            that choose one another by most attention.
    """

    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        """Writes the pairs in the Pharaoh format: `0-0 1-2`."""
        return " ".join(f"{source}-{target}" for source, target in self.pairs)


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
        alignment: which words stand for which; None unless it was asked for.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    token_log_probs: tuple[float, ...] = ()
    alignment: Alignment | None = None

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
