"""What models return beside translations: scores, texts that go on, and words for a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m2m100_onnx.translation import Hypothesis

__all__ = ["Filling", "Generation", "Score"]


@dataclass(frozen=True)
class Score:
    """How likely a text is, or a translation of a source.

    A translation model scores each token of a target from the source and the tokens before it, the
    language token and `</s>` included, as PyTorch's `labels` do.

    A causal model scores each token from those before it, `</s>` included. A masked model scores
    each token of the text from all others, with that token masked; the sum is the
    pseudo-log-likelihood of "Masked Language Model Scoring", https://arxiv.org/abs/1910.14659.

    Attributes:
        tokens: the tokens that are scored.
        pieces: the same as pieces of text.
        token_log_probs: the natural logarithm of the probability of each.
        token_entropies: the entropy of the distribution that each comes from, in nats: `log(n)`
            where n tokens are equally likely; empty unless it was asked for.
    """

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    token_log_probs: tuple[float, ...]
    token_entropies: tuple[float, ...] = ()

    @property
    def sum(self) -> float:
        """Sum of `token_log_probs`: the logarithm of the text's probability."""
        return math.fsum(self.token_log_probs)

    @property
    def mean(self) -> float:
        """Mean of `token_log_probs`; NaN for a text without tokens."""
        return self.sum / len(self.token_log_probs) if self.token_log_probs else math.nan

    @property
    def loss(self) -> float:
        """`-mean`: the cross-entropy, in nats per token; NaN for a text without tokens."""
        return -self.mean

    @property
    def perplexity(self) -> float:
        """`exp(-mean)`: among how many equally likely tokens the model chose, on average."""
        return math.exp(-self.mean) if self.token_log_probs else math.nan


@dataclass(frozen=True)
class Generation:
    """A prompt that the model went on from: its best continuation, and all of them.

    Attributes:
        text: the prompt and what follows, as words with a blank between them.
        score: sum of the new tokens' log-probabilities over their number to the power of
            `length_penalty`.
        tokens: `<s>`, the prompt, the new tokens, and `</s>` unless max_length cut it.
        hypotheses: `num_hypotheses` of them, best first.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    hypotheses: tuple[Hypothesis, ...]


@dataclass(frozen=True)
class Filling:
    """A token in the place of a mask.

    Attributes:
        text: the text with the token in the mask's place, as words with a blank between them.
        piece: the token as a piece of text.
        token: its id.
        score: its probability.
    """

    text: str
    piece: str
    token: int
    score: float
