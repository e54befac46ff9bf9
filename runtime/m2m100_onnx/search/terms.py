"""Beam search whose results contain given terms: constrained decoding by dynamic beam allocation.

Source: "Fast Lexically Constrained Decoding with Dynamic Beam Allocation for Neural Machine
Translation", https://arxiv.org/abs/1804.06609. Beams compete with those that have as many tokens of
their terms before them: the beam size is shared out between these banks. Here the bank of a
sequence is found from its text, so that a term counts however its tokens are cut.

Knows token ids; what their text contains comes as a function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2m100_onnx.search.beams import Beams, Candidates, best_candidates
from m2m100_onnx.search.state import NO_CELLS, Int64Array, Ranked

__all__ = ["Terms", "asked_cells", "constrained_candidates"]

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Terms:
    """What a sequence must contain.

    Attributes:
        variants: for each term the sequences of tokens that bring it.
        counts: how often each term must be there.
        met: says how often each term is in a sequence of tokens.
        given: tokens of the prompt, which bring no term.
    """

    variants: tuple[tuple[Tokens, ...], ...]
    counts: tuple[int, ...]
    met: Callable[[Tokens], Sequence[int]]
    given: int

    def ways(self, sequence: Tokens) -> tuple[int, set[int]]:
        """Returns the tokens that a sequence must still append, and which it may append next."""
        found = self.met(sequence)
        total, saved, following = 0, 0, set()
        for variants, count, met in zip(self.variants, self.counts, found, strict=True):
            missing = max(0, count - met)
            if not missing:
                continue
            least = min(map(len, variants))
            total += missing * least
            for variant in variants:
                begun = _begun(sequence[self.given :], variant)
                saved = max(saved, least - len(variant) + begun)
                following |= {variant[begun], variant[0]}
        return total - saved, following


def _begun(sequence: Tokens, variant: Tokens) -> int:
    """Returns how many first tokens of a variant, not all, a sequence ends with."""
    for size in range(min(len(variant) - 1, len(sequence)), 0, -1):
        if sequence[-size:] == variant[:size]:
            return size
    return 0


def asked_cells(beams: Beams, terms: Sequence[Terms | None]) -> Int64Array:
    """Returns the `(Q, 2)` rows and tokens whose scores the terms of each search need."""
    width = beams.scores.shape[1]
    cells = [
        (n * width + k, token)
        for n, wanted in enumerate(terms)
        if wanted is not None
        for k in np.flatnonzero(beams.scores[n] > -np.inf).tolist()
        for token in sorted(wanted.ways(tuple(beams.tokens[n, k].tolist()))[1])
    ]
    return np.array(cells, np.int64) if cells else NO_CELLS


def constrained_candidates(
    ranked: Ranked,
    asked: Int64Array,
    beams: Beams,
    terms: Sequence[Terms | None],
    over: Callable[[Int64Array, Int64Array], npt.NDArray[np.bool_]],
    wanted: int,
) -> Candidates:
    """Finds the best continuations of every search, shared out between the banks of its terms.

    A search without terms has those that it would have without the others'.

    Args:
        ranked: the best tokens of each row, and the scores of `asked`.
        asked: `(Q, 2)` rows and tokens.
        beams: the searches.
        terms: what each must contain.
        over: says of rows `(C,)` and tokens `(C,)` which sequences end with the token.
        wanted: candidates of a search.
    """
    found = best_candidates(ranked, beams, wanted)
    k = beams.scores.shape[1]
    base = beams.scores.reshape(-1)
    for n, own in enumerate(terms):
        if own is None:
            continue
        # The paper's three kinds: the best of all, the best of each beam, and those of the terms.
        lines = np.arange(n * k, (n + 1) * k)
        mine = (asked[:, 0] >= n * k) & (asked[:, 0] < (n + 1) * k)
        rows, tokens = asked[mine].T
        kinds = (
            (found.rows[n], found.tokens[n], found.scores[n]),
            (lines, ranked.tokens[lines, 0], base[lines] + ranked.scores[lines, 0]),
            (rows, tokens, base[rows] + ranked.asked[mine]),
        )
        scores = {
            (row, token): score
            for kind in kinds
            for row, token, score in zip(*(column.tolist() for column in kind), strict=True)
        }
        chosen = _allocated(scores, beams.sequences, own, over, wanted)
        found.scores[n, len(chosen) :] = -np.inf
        for place, (row, token) in enumerate(chosen):
            found.rows[n, place], found.tokens[n, place] = row, token
            found.scores[n, place] = scores[row, token]
    return found


def _allocated(
    scores: dict[tuple[int, int], float],
    sequences: Int64Array,
    terms: Terms,
    over: Callable[[Int64Array, Int64Array], npt.NDArray[np.bool_]],
    wanted: int,
) -> list[tuple[int, int]]:
    """Returns `wanted` rows and tokens: of each bank in turn its best, fullest bank first."""
    cells = [cell for cell, score in scores.items() if score > -np.inf]
    if not cells:
        return []
    rows, tokens = np.array(cells, np.int64).T
    ended = over(rows, tokens)
    banks: dict[int, list[tuple[int, int]]] = {}
    for cell, is_over in zip(cells, ended.tolist(), strict=True):
        row, token = cell
        missing, _ = terms.ways((*sequences[row].tolist(), token))
        if not (is_over and missing):  # It can no longer bring what is missing.
            banks.setdefault(missing, []).append(cell)
    for bank in banks.values():
        bank.sort(key=lambda cell: (-scores[cell], cell))
    turns = itertools.zip_longest(*(banks[missing] for missing in sorted(banks)))
    return [cell for turn in turns for cell in turn if cell is not None][:wanted]
