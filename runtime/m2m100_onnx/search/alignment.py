"""Attention between tokens becomes links between words.

Knows numbers; knows no tokens and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2m100_onnx.search.state import Float32Array

__all__ = ["agreement", "best_pairs", "between_words"]

Span = tuple[int, int]


def between_words(
    weights: Float32Array, sources: Sequence[Span], targets: Sequence[Span]
) -> Float32Array:
    """Returns the attention of target words to source words, `(len(targets), len(sources))`.

    It is the sum over the pieces of a source word, and the mean over those of a target word.

    Args:
        weights: `(T, S)` attention of target pieces to source pieces.
        sources: first piece and end of each source word.
        targets: first piece and end of each target word.
    """
    rows = [weights[start:end].mean(axis=0) for start, end in targets]
    found = [[row[start:end].sum() for start, end in sources] for row in rows]
    return np.array(found, np.float32).reshape(len(targets), len(sources))


def best_pairs(matrix: Float32Array) -> list[tuple[int, int]]:
    """Returns places of source and target words that belong together, by target word.

    A target word belongs to the source word that it attends to most.
    """
    if not matrix.size:
        return []
    return [(int(source), target) for target, source in enumerate(matrix.argmax(axis=1))]


def agreement(matrix: Float32Array) -> float:
    """Returns the share of words that choose one another, of the longer side's words.

    A head that aligns has more of them than others. No links made by hand are needed to tell.
    """
    back = {(source, int(target)) for source, target in enumerate(matrix.argmax(axis=0))}
    targets, sources = map(int, matrix.shape)
    return len(back.intersection(best_pairs(matrix))) / max(targets, sources)
