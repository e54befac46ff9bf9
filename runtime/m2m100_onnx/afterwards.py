"""What needs another run of a model when translations are there: reranking and alignments.

Knows translations; leaves scores to `rerank.py` and alignments to `aligning.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m2m100_onnx.aligning import Aligner
from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.errors import M2M100Error
from m2m100_onnx.inputs import Row
from m2m100_onnx.options import SearchOptions, Settings
from m2m100_onnx.rerank import Reranker
from m2m100_onnx.translation import Translation

__all__ = ["complete", "has_afterwards"]


def _aligns(search: SearchOptions) -> bool:
    return search.alignments or search.replace_unknowns


def has_afterwards(settings: Settings, rerank: Reranker | None) -> bool:
    """Says whether a call wants more than a search finds."""
    return rerank is not None or _aligns(settings.search)


def complete(
    texts: Sequence[tuple[Sentence, Row]],
    results: Mapping[int, Translation],
    settings: Settings,
    rerank: Reranker | None,
    stop: Stop,
    aligner: Aligner,
    gate: Gate,
) -> dict[int, Translation]:
    """Returns translations with what their call wants beside them, as far as `stop` allowed.

    Args:
        texts: the sources, as tokens and as the caller gave them.
        results: what the search found, by position.
        settings: say what is wanted.
        rerank: orders hypotheses; None leaves the search's order.
        stop: ends the work; what was not reached is left out.
        aligner: aligns.
        gate: lets no call in when the translator is closed.

    Raises:
        M2M100Error: those of the aligner and of the reranker.
    """
    found = dict(results)
    if rerank is not None:
        found = _reranked(texts, found, rerank)
    if _aligns(settings.search):
        sides = {
            sentence.position: (row.text, sentence.source, row.target_lang)
            for sentence, row in texts
        }
        with gate.call():
            found = aligner.attach(found, sides, settings, stop)
    return found


def _reranked(
    texts: Sequence[tuple[Sentence, Row]], results: Mapping[int, Translation], rerank: Reranker
) -> dict[int, Translation]:
    """Returns the results with their hypotheses in a language model's order."""
    targets = {sentence.position: row.target_lang for sentence, row in texts}
    positions = list(results)
    try:
        found = rerank.order([*results.values()], [targets[p] for p in positions])
    except M2M100Error as error:
        if error.position is not None:
            error.position = positions[error.position]
        raise
    return dict(zip(positions, found, strict=True))
