"""Diverse beam search: groups of beams, each of which avoids the tokens of the groups before it.

Source: "Diverse Beam Search", https://arxiv.org/abs/1610.02424, with the Hamming diversity of its
section 4, as transformers' group beam search has it.
"""

from __future__ import annotations

import numpy as np

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.beams import Beams, Candidates, best_candidates
from m2m100_onnx.search.state import Int64Array, Ranked, rows_of

__all__ = ["diverse_candidates"]


def diverse_candidates(
    ranked: Ranked, beams: Beams, options: SearchOptions, eos_id: int
) -> Candidates:
    """Finds the best continuations of every group, given those of the groups before it.

    A token costs `diversity_penalty` for each beam of an earlier group that has chosen it in this
    step.

    Args:
        ranked: the best `2 * K + beam_size` tokens of each row; the penalty moves no more than
            `beam_size` of them.
        beams: searches `sentence * num_beam_groups + group`, K beams each.
        options: has the groups and the penalty.
        eos_id: the token that ends a sequence, which no beam has chosen to go on with.
    """
    groups, k = options.num_beam_groups, options.group_size
    count, rows = beams.scores.shape
    sentences, group = np.divmod(beams.searches, groups)
    chosen = np.full((int(sentences.max()) + 1, groups, k), -1)
    found = Candidates(
        np.empty((count, 2 * k), np.float32),
        np.empty((count, 2 * k), np.int64),
        np.empty((count, 2 * k), np.int64),
    )
    for number in range(groups):
        places = np.flatnonzero(group == number)
        if not len(places):
            continue
        some = beams.kept(places)
        lines = rows_of(places, rows)
        earlier = chosen[sentences[places]].reshape(len(places), -1)
        own = _penalized(
            Ranked(ranked.scores[lines], ranked.tokens[lines]),
            some,
            np.repeat(earlier, rows, axis=0),
            options,
        )
        best = best_candidates(own, some, 2 * k)
        found.scores[places], found.tokens[places] = best.scores, best.tokens
        found.rows[places] = lines[best.rows]
        going = np.argsort(best.tokens == eos_id, axis=1, kind="stable")[:, :k]
        # A group that is done chooses none.
        tokens = np.where(best.scores > -np.inf, best.tokens, -1)
        chosen[sentences[places], number] = np.take_along_axis(tokens, going, axis=1)
    return found


def _penalized(ranked: Ranked, beams: Beams, chosen: Int64Array, options: SearchOptions) -> Ranked:
    """Subtracts the penalty of tokens that earlier groups chose, `(R, G * K)`."""
    times = (ranked.tokens[:, :, None] == chosen[:, None, :]).sum(axis=2)
    penalty = (options.diversity_penalty * times).astype(np.float32)
    if options.repetition_penalty != 1:
        # In transformers the repetition penalty acts on what this one leaves.
        seen = (ranked.tokens[:, :, None] == beams.sequences[:, None, :]).any(axis=2)
        penalty[seen] *= options.repetition_penalty
    return Ranked(ranked.scores - penalty, ranked.tokens)
