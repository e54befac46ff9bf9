"""What a batch costs, and how sentences become batches: sorting, cutting and padding.

No other file sorts, cuts or pads. Knows token ids, lengths and budgets; knows no text, and leaves
the bytes of a cache to the model that lays it out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from m2m100_onnx.options import Settings
from m2m100_onnx.process import memory_limit
from m2m100_onnx.search.state import Int64Array

__all__ = ["Batch", "Sentence", "cut", "part_of"]

_LEAST_TOKENS_A_ROW = 32
"""Tokens that a short source counts as: each row costs a vocabulary of scores."""
_SHARE_OF_MEMORY = 4
"""A batch may reserve the memory divided by this; weights and other programs have the rest."""
_MEMORY_UNKNOWN = 1 << 32
"""Bytes that a batch may reserve where the system does not tell its memory: 4 GiB."""
_memory_limit = functools.cache(memory_limit)
"""Read once per process, since reading it takes as long as a step of a small model."""
_SOURCE_STEP = 4
"""Source lengths are padded to multiples of this.

Kernels add up four numbers of a source at a time and the rest one by one. So a sentence of five
tokens alone, and the same one padded to eight beside another, differed in the last bit. Rounding
activations to eight bits can amplify that: of 720 sentences, four got another translation.
"""


@dataclass(frozen=True)
class Sentence:
    """A text as tokens.

    Attributes:
        position: index of the text in the call.
        source: the encoder's input.
        prompt: the decoder's first tokens.
    """

    position: int
    source: Sequence[int]
    prompt: Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Sentences as the model takes them.

    Attributes:
        input_ids: `(B, S)` source tokens, padded at the end.
        attention_mask: `(B, S)` 1 at tokens and 0 at padding.
        prompt: `(B, P)` first tokens of the decoder.
    """

    input_ids: Int64Array
    attention_mask: Int64Array
    prompt: Int64Array

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def arrays(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The three arrays, in the order in which the model takes them."""
        return self.input_ids, self.attention_mask, self.prompt

    @classmethod
    def of(cls, sentences: Sequence[Sentence], pad_id: int) -> Batch:
        """Pads sentences, whose prompts have one length, to the longest of them."""
        lengths = np.array([len(sentence.source) for sentence in sentences])
        width = int(lengths.max())
        input_ids = np.full((len(sentences), width), pad_id, np.int64)
        for row, sentence in zip(input_ids, sentences, strict=True):
            row[: len(sentence.source)] = sentence.source
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        return cls(input_ids, mask, np.array([s.prompt for s in sentences], np.int64))


def part_of(batch: Batch, part: int, parts: int, pad_id: int) -> Batch:
    """Returns every `parts`-th sentence from `part` on, padded to the longest among them.

    Neighbours in a sorted batch go to different parts, so the parts take equally long.
    """
    ids, mask, prompt = (
        array[part::parts] for array in (batch.input_ids, batch.attention_mask, batch.prompt)
    )
    longest = int(mask.sum(axis=1).max())
    width = -(-longest // _SOURCE_STEP) * _SOURCE_STEP
    return Batch(
        _fitted(ids, longest, width, pad_id), _fitted(mask, longest, width, 0), prompt.copy()
    )


def _fitted(array: Int64Array, longest: int, width: int, padding: int) -> Int64Array:
    fitted = np.full((len(array), width), padding, np.int64)
    fitted[:, :longest] = array[:, :longest]
    return fitted


def cut(
    sentences: Sequence[Sentence],
    settings: Settings,
    cache_bytes: Callable[[int, int, int, int], int],
) -> Iterator[list[Sentence]]:
    """Sorts sentences, longest source first, and cuts them into batches within both budgets.

    A batch is charged what it may come to: its tokens, and the bytes that the cache and the scores
    reserve when every translation reaches `max_length`. A batch of one sentence is always allowed.

    Args:
        sentences: in any order.
        settings: has the budgets, `max_batch_tokens` and `max_batch_bytes`.
        cache_bytes: the model's bytes for sentences, rows, source length and target length.
    """
    ordered = sorted(sentences, key=lambda sentence: -len(sentence.source))
    beams, longest = settings.search.beam_size, settings.search.max_length
    budget = settings.call.max_batch_bytes
    if budget is None:
        budget = (_memory_limit() or _MEMORY_UNKNOWN * _SHARE_OF_MEMORY) // _SHARE_OF_MEMORY
    start = 0
    while start < len(ordered):
        source = len(ordered[start].source)
        tokens = max(source, _LEAST_TOKENS_A_ROW) * beams
        most = settings.call.max_batch_tokens // tokens
        # Bytes grow with the sentences in proportion, so one sentence tells how many fit.
        most = min(most, budget // cache_bytes(1, beams, source, longest))
        stop = start + max(1, most)
        yield ordered[start:stop]
        start = stop
