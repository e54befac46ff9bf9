"""Endless training batches from the token arrays that prepare.py wrote.

Knows rows, pairs and padding; knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from vocabulary import EOS, LANGS, PAD

POOL = 200_000
"""Number of pairs that are sorted by length together."""
SLACK = 1.15
"""Factor by which a batch may exceed the requested number of tokens."""
HALVED_SOURCES = (
    "trans-de-en",
    "deb:blender-data",
    "deb:iso-codes",
    "deb:naev-data",
    "deb:kstars-data",
)
"""Large sources of names and special terms. They are drawn half as often as their size implies."""


class Batch(NamedTuple):
    """Padded ids of B pairs.

    Attributes:
        source: `(B, S)` of `[source_lang, *pieces, </s>]`.
        decoder_input: `(B, T)`, `target` shifted right behind `</s>`.
        target: `(B, T)` of `[target_lang, *pieces, </s>]`.
    """

    source: torch.Tensor
    decoder_input: torch.Tensor
    target: torch.Tensor


def pad_batch(sources: list[NDArray], targets: list[NDArray]) -> Batch:
    """Pads pairs of complete sequences (language token to `</s>`) into a batch."""
    source = np.full((len(sources), max(map(len, sources))), PAD, np.int64)
    target = np.full((len(targets), max(map(len, targets))), PAD, np.int64)
    decoder_input = np.full_like(target, PAD)
    for row, (ours, theirs) in enumerate(zip(sources, targets, strict=True)):
        source[row, : len(ours)] = ours
        target[row, : len(theirs)] = theirs
        decoder_input[row, 0] = EOS
        decoder_input[row, 1 : len(theirs)] = theirs[:-1]
    return Batch(*map(torch.from_numpy, (source, decoder_input, target)))


class Pairs(NamedTuple):
    """Chosen pairs, as three `(N,)` arrays; languages are indices into `LANGS`."""

    row: NDArray
    source_lang: NDArray
    target_lang: NDArray


@dataclass(frozen=True)
class Corpus:
    """The encoded training rows.

    Attributes:
        flat: all ids of each language, by index into `LANGS`.
        starts: `(rows, languages)`, where a text starts in `flat`.
        lengths: `(rows, languages)`, number of ids; 0 where there is no text.
        weights: `(rows,)`, probability that a pass draws a row.
        lang_ids: language token, by index into `LANGS`.
    """

    flat: list[NDArray]
    starts: NDArray
    lengths: NDArray
    weights: NDArray
    lang_ids: list[int]

    @classmethod
    def load(cls, path: Path, lang_ids: dict[str, int]) -> Corpus:
        """Reads the arrays that prepare.py wrote."""
        with np.load(path) as arrays:
            lengths = np.stack([arrays[f"len_{lang}"] for lang in LANGS], 1).astype(np.int32)
            starts = np.stack([arrays[f"at_{lang}"] for lang in LANGS], 1)
            flat = [arrays[f"flat_{lang}"] for lang in LANGS]
            names = arrays["src_names"][arrays["src"]]
        english = lengths[:, 0]
        # Short labels and long texts are drawn less often.
        weights = np.select([english < 4, english < 6, english > 45], [0.3, 0.5, 0.5], 1.0)
        weights = weights * np.where(np.isin(names, HALVED_SOURCES), 0.5, 1.0)
        return cls(flat, starts, lengths, weights, [lang_ids[lang] for lang in LANGS])

    def sequence(self, row: int, lang: int) -> NDArray:
        """Returns `[language, *pieces, </s>]` of one text."""
        start = self.starts[row, lang]
        pieces = self.flat[lang][start : start + self.lengths[row, lang]]
        return np.concatenate(([self.lang_ids[lang]], pieces, [EOS]))

    def draw_pass(self, rng: np.random.Generator) -> Pairs:
        """Draws the pairs of one pass: up to three with English per row, and often one without."""
        present = self.lengths > 0
        others = present[:, 1:].sum(1)
        # The row's other languages in random order; missing languages come last.
        keys = np.where(present[:, 1:], rng.random((len(present), len(LANGS) - 1)), 2.0)
        order = np.argsort(keys, 1) + 1
        chosen: list[Pairs] = []
        for place in range(3):
            drawn = rng.random(len(present)) < self.weights
            rows = np.nonzero((others > place) & present[:, 0] & drawn)[0]
            lang = order[rows, place]
            from_english = rng.random(len(rows)) < 0.5
            chosen.append(
                Pairs(rows, np.where(from_english, 0, lang), np.where(from_english, lang, 0))
            )
        drawn = rng.random(len(present)) < 0.7 * self.weights
        rows = np.nonzero((others >= 2) & drawn)[0]
        chosen.append(Pairs(rows, order[rows, 0], order[rows, 1]))
        shuffled = rng.permutation(sum(len(pairs.row) for pairs in chosen))
        return Pairs(*(np.concatenate(column)[shuffled] for column in zip(*chosen, strict=True)))

    def batches(self, tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yields batches of about `tokens` padded tokens on the longer side, without an end."""
        while True:
            pairs = self.draw_pass(rng)
            for first in range(0, len(pairs.row), POOL):
                pool = Pairs(*(column[first : first + POOL] for column in pairs))
                yield from self._pool_batches(pool, tokens, rng)

    def _pool_batches(self, pool: Pairs, tokens: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Cuts a pool into batches of similar lengths, and yields them in random order."""
        source_lengths = self.lengths[pool.row, pool.source_lang]
        target_lengths = self.lengths[pool.row, pool.target_lang]
        # Sorts by target, then by source. A random bit changes the neighbours of a pair between
        # passes.
        jitter = rng.integers(0, 2, len(pool.row))
        order = np.lexsort((source_lengths + jitter, target_lengths))
        pool = Pairs(*(column[order] for column in pool))
        longest = np.maximum(source_lengths, target_lengths)[order] + 2
        bounds = [0]
        width = 0
        for end, length in enumerate(longest.tolist()):
            width = max(width, length)
            if end > bounds[-1] and (end - bounds[-1] + 1) * width > tokens * SLACK:
                bounds.append(end)
                width = length
        bounds.append(len(longest))
        for index in rng.permutation(len(bounds) - 1):
            span = slice(bounds[index], bounds[index + 1])
            rows, ours, theirs = (column[span].tolist() for column in pool)
            yield pad_batch(
                [self.sequence(row, lang) for row, lang in zip(rows, ours, strict=True)],
                [self.sequence(row, lang) for row, lang in zip(rows, theirs, strict=True)],
            )
