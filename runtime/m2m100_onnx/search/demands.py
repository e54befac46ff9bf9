"""What the sentences of a batch ask of a search beyond its options, each for itself.

Knows token ids; knows no text: what depends on text comes as a function of token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from m2m100_onnx.search.state import Int64Array
from m2m100_onnx.search.terms import Terms

__all__ = ["NO_DEMANDS", "Demands", "Ends"]

Ends: TypeAlias = Callable[[Int64Array], npt.NDArray[np.bool_]]
"""Says of `(R, length)` sequences which of them end with their last token, `(R,)`."""


@dataclass(frozen=True)
class Demands:
    """Limits, ends, terms and the least length.

    Attributes:
        limits: `(B,)` the most tokens of each sentence, which `max_length` bounds too; None for no
            others.
        ends: what ends a sequence beside `</s>`.
        terms: what the sequences of each sentence must contain; None where nothing.
        least: tokens before which no sequence ends, as `min_length`.
    """

    limits: Int64Array | None = None
    ends: Ends | None = None
    terms: tuple[Terms | None, ...] = ()
    least: int = 0

    def part(self, number: int, parts: int) -> Demands:
        """Returns those of every `parts`-th sentence from `number` on."""
        limits = None if self.limits is None else self.limits[number::parts].copy()
        return Demands(limits, self.ends, self.terms[number::parts], self.least)

    def most(self, sentences: Int64Array, max_length: int) -> Int64Array:
        """Returns the most tokens of each of `sentences` `(N,)`."""
        if self.limits is None:
            return np.full(len(sentences), max_length)
        return np.minimum(self.limits[sentences], max_length)

    def wants_terms(self, sentence: int) -> bool:
        """Says whether there is something that a sentence must contain."""
        return bool(self.terms) and self.terms[sentence] is not None

    def over(
        self, sequences: Int64Array, rows: Int64Array, tokens: Int64Array, eos_id: int
    ) -> npt.NDArray[np.bool_]:
        """Says which tokens end the sequences that they are appended to.

        Args:
            sequences: `(R, length)` tokens.
            rows: which of them to append to; any shape.
            tokens: what to append, of that shape.
            eos_id: the token of the end.
        """
        over: npt.NDArray[np.bool_] = tokens == eos_id
        if self.ends is not None:
            last = tokens.reshape(-1, 1)
            grown = np.concatenate([sequences[rows.reshape(-1)], last], axis=1)
            over |= self.ends(grown).reshape(tokens.shape)
        return over


NO_DEMANDS = Demands()
"""Of sentences that ask for nothing."""
