"""Constraints on the next token: repeated n-grams, repeated tokens, minimum length, suppressed ids.

Turns options and prefixes into a `Ranking`, in terms of rows and tokens; knows no scores.
"""

from __future__ import annotations

import numpy as np

from m2m100_onnx.options import SearchOptions
from m2m100_onnx.search.state import NO_CELLS, Int64Array, Ranking

__all__ = ["next_ranking"]

_ALL = 1 << 31
"""More tokens than any vocabulary has."""


def next_ranking(sequences: Int64Array, eos_id: int, options: SearchOptions) -> Ranking:
    """Returns what the search wants of the next step.

    Args:
        sequences: `(R, length)` the tokens of each row so far, the prompt included.
        eos_id: the token that ends a sequence.
        options: what to search for.
    """
    count, length = sequences.shape
    rows = np.arange(count)
    seen, banned = NO_CELLS, [NO_CELLS]
    if options.repetition_penalty != 1:
        seen = _cells(np.repeat(rows, length), sequences.reshape(-1))
    size = options.no_repeat_ngram_size
    if 0 < size <= length:
        windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
        suffix = sequences[:, None, length - size + 1 :]
        again, starts = np.nonzero((windows[:, :, :-1] == suffix).all(axis=2))
        banned.append(_cells(again, windows[again, starts, -1]))
    for sequence in options.suppress_sequences:
        assert not isinstance(sequence, str), "words are spelled before"
        *before, last = sequence
        if len(before) <= length:
            same = (sequences[:, length - len(before) :] == before).all(axis=1)
            banned.append(_cells(rows[same], np.full(int(same.sum()), last)))
    tokens = [*options.suppress_tokens, *([eos_id] if length < options.min_length else [])]
    if tokens:
        banned.append(_cells(np.repeat(rows, len(tokens)), np.tile(tokens, count)))
    return Ranking(
        count=_count(options),
        renormalized=options.beam_size == 1,
        repetition_penalty=options.repetition_penalty,
        seen=seen,
        banned=np.concatenate(banned),
    )


def _count(options: SearchOptions) -> int:
    """Returns the number of best tokens of a row that the search looks at."""
    if options.do_sample:
        return options.top_k or _ALL
    # Each of K beams can end in one way only, so K of 2K candidates go on for certain.
    if options.num_beam_groups == 1:
        return 2 * options.beam_size
    # The choices of other groups move so many candidates back.
    return 2 * options.group_size + options.beam_size


def _cells(rows: Int64Array, tokens: Int64Array) -> Int64Array:
    return np.stack([rows, tokens], axis=1).astype(np.int64, copy=False)
