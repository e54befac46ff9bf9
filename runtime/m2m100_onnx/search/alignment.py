"""Attention between tokens becomes links between words.

Knows numbers; knows no tokens and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2m100_onnx.search.state import Float32Array

__all__ = ["agreement", "between_words", "mutual_pairs"]

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


def mutual_pairs(matrix: Float32Array) -> list[tuple[int, int]]:
    """Returns places of source and target words that belong together, by target word.

    They choose one another: the target word attends to no other source word more, and no other
    target word attends to the source word more.
    """
    if not matrix.size:
        return []
    sources, targets = matrix.argmax(axis=1).tolist(), matrix.argmax(axis=0).tolist()
    return [(source, target) for target, source in enumerate(sources) if targets[source] == target]


def agreement(matrix: Float32Array) -> float:
    """Returns the share of words that choose one another, of the longer side's words.

    A head that aligns has more of them than others. No links made by hand are needed to tell.
    """
    return len(mutual_pairs(matrix)) / max(len(matrix), len(matrix[0]))
