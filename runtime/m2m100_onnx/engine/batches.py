"""What a batch costs, and how sentences become batches: sorting, cutting and padding.

No other file sorts, cuts or pads, but for whole texts (`text_batches.py`). Knows token ids, lengths
and budgets; knows no text, and leaves the bytes of a cache to the model that lays it out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from m2m100_onnx.options import CallOptions, Settings
from m2m100_onnx.process import memory_limit
from m2m100_onnx.search.demands import NO_DEMANDS, Demands, Ends
from m2m100_onnx.search.state import Int64Array
from m2m100_onnx.search.terms import Terms

__all__ = [
    "LEAST_TOKENS_A_ROW",
    "Batch",
    "Prompts",
    "Sentence",
    "cut",
    "cut_prompts",
    "most_rows",
    "padded",
    "places",
]

LEAST_TOKENS_A_ROW = 32
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
        given: tokens of the prompt that are not in the length of the translation: the start token,
            or all of a prompt that goes on with a prefix.
        limit: the most tokens of the translation, which `max_length` bounds too; None for no other.
        least: tokens before which it does not end, as `min_length`.
        ends: what ends a sequence beside `</s>`, the same for all sentences of a call.
        terms: what the translation must contain.
    """

    position: int
    source: Sequence[int]
    prompt: Sequence[int]
    given: int = 1
    limit: int | None = None
    least: int = 0
    ends: Ends | None = None
    terms: Terms | None = None


@dataclass(frozen=True)
class Batch:
    """Sentences as the model takes them.

    Attributes:
        input_ids: `(B, S)` source tokens, padded at the end.
        attention_mask: `(B, S)` 1 at tokens and 0 at padding.
        prompt: `(B, P)` first tokens of the decoder.
        given: tokens of the prompt that are not in the length of a sequence.
        demands: what the sentences ask of the search beyond its options.
    """

    input_ids: Int64Array
    attention_mask: Int64Array
    prompt: Int64Array
    given: int = 1
    demands: Demands = NO_DEMANDS

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def arrays(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        """The three arrays, in the order in which the model takes them."""
        return self.input_ids, self.attention_mask, self.prompt

    @property
    def keys(self) -> list[list[int]]:
        """The tokens of each sentence, and its prompt."""
        lengths = self.attention_mask.sum(axis=1)
        sources = (ids[:n] for ids, n in zip(self.input_ids, lengths, strict=True))
        return [[*s.tolist(), *p.tolist()] for s, p in zip(sources, self.prompt, strict=True)]

    def part(self, number: int, parts: int, pad_id: int) -> Batch:
        """Returns every `parts`-th sentence from `number` on, padded to the longest among them.

        Neighbours in a sorted batch go to different parts, so the parts take equally long.
        """
        ids, mask, prompt = (array[number::parts] for array in self.arrays)
        longest = int(mask.sum(axis=1).max())
        width = padded(longest)
        return Batch(
            _fitted(ids, longest, width, pad_id),
            _fitted(mask, longest, width, 0),
            prompt.copy(),
            self.given,
            self.demands.part(number, parts),
        )

    @classmethod
    def of(cls, sentences: Sequence[Sentence], pad_id: int) -> Batch:
        """Pads sentences, whose prompts have one length, to the longest of them."""
        given = sentences[0].given
        lengths = np.array([len(sentence.source) for sentence in sentences])
        width = int(lengths.max())
        input_ids = np.full((len(sentences), width), pad_id, np.int64)
        for row, sentence in zip(input_ids, sentences, strict=True):
            row[: len(sentence.source)] = sentence.source
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        prompt = np.array([s.prompt for s in sentences], np.int64)
        return cls(input_ids, mask, prompt, given, _demands(sentences))


def _demands(sentences: Sequence[Sentence]) -> Demands:
    """Returns what sentences ask of their search."""
    limits = None
    terms: tuple[Terms | None, ...] = ()
    if sentences[0].limit is not None:  # All of a call have one, or none.
        limits = np.array([sentence.limit for sentence in sentences], np.int64)
    if any(sentence.terms is not None for sentence in sentences):
        terms = tuple(sentence.terms for sentence in sentences)
    # Where prompts have one length, so have what is given and what is to come.
    return Demands(limits, sentences[0].ends, terms, sentences[0].least)


@dataclass(frozen=True)
class Prompts:
    """Texts of one length that a language model goes on from.

    Attributes:
        prompt: `(B, P)` tokens.
        langs: `(B,)` the language id of each text.
        demands: what the texts ask of the search beyond its options.
    """

    prompt: Int64Array
    langs: Int64Array
    demands: Demands = NO_DEMANDS

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def arrays(self) -> tuple[Int64Array, Int64Array]:
        """The two arrays, in the order in which the model takes them."""
        return self.prompt, self.langs

    @property
    def given(self) -> int:
        """Tokens of the prompt that are not in the length of a sequence: all of them."""
        return int(self.prompt.shape[1])

    @property
    def keys(self) -> list[list[int]]:
        """The tokens of each prompt, and its language."""
        return [[*p.tolist(), int(n)] for p, n in zip(self.prompt, self.langs, strict=True)]

    def part(self, number: int, parts: int, _: int) -> Prompts:
        """Returns every `parts`-th text from `number` on."""
        prompt, langs = self.prompt[number::parts].copy(), self.langs[number::parts].copy()
        return Prompts(prompt, langs, self.demands.part(number, parts))


def padded(length: int) -> int:
    """Returns the width of a batch whose longest source has a length."""
    return -(-length // _SOURCE_STEP) * _SOURCE_STEP


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

    Prompts of a batch have one length, and those with longer prefixes come first.

    A batch is charged what it may come to: its tokens, and the bytes that the cache and the scores
    reserve when every translation reaches `max_length`. A batch of one sentence is always allowed.

    Args:
        sentences: in any order.
        settings: has the budgets, `max_batch_tokens` and `max_batch_bytes`.
        cache_bytes: the model's bytes for sentences, rows, source length and target length.
    """
    ordered = sorted(sentences, key=lambda one: (-len(one.prompt), -len(one.source)))
    longest = settings.search.max_length
    # All have a limit, or none.
    longest = min(longest, max((s.limit or longest for s in ordered), default=longest))
    start = 0
    while start < len(ordered):
        most = places(ordered[start], settings, cache_bytes, longest)
        prompt = len(ordered[start].prompt)
        batch = [s for s in ordered[start : start + most] if len(s.prompt) == prompt]
        yield batch
        start += len(batch)


def places(
    longest: Sentence,
    settings: Settings,
    cache_bytes: Callable[[int, int, int, int], int],
    target: int,
) -> int:
    """Returns how many sentences a batch within both budgets has at most, one at least.

    Args:
        longest: the sentence of the batch with the longest source.
        settings: has the budgets.
        cache_bytes: as `cut` takes it.
        target: the most tokens of a translation.
    """
    beams, source = settings.search.rows, len(longest.source)
    tokens = max(source, LEAST_TOKENS_A_ROW) * beams
    # Bytes grow with the sentences in proportion, so one sentence tells how many fit.
    return most_rows(settings.call, tokens, cache_bytes(1, beams, source, target))


def cut_prompts(
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    cache_bytes: Callable[[int, int], int],
) -> Iterator[list[int]]:
    """Groups prompts by length, and cuts the groups into batches within both budgets.

    Args:
        prompts: in any order.
        settings: has the budgets.
        cache_bytes: the model's bytes for rows and their length.

    Yields:
        The indices of the prompts of a batch.
    """
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(place)
    beams, longest = settings.search.rows, settings.search.max_length
    for length, places in sorted(groups.items(), reverse=True):
        tokens = max(length, LEAST_TOKENS_A_ROW) * beams
        most = most_rows(settings.call, tokens, cache_bytes(beams, longest))
        for start in range(0, len(places), most):
            yield places[start : start + most]


def most_rows(options: CallOptions, tokens: int, size: int) -> int:
    """Returns how many rows a batch has at most, one at least.

    Args:
        options: has the budgets.
        tokens: what a row is charged.
        size: bytes of a row.
    """
    budget = options.max_batch_bytes
    if budget is None:
        budget = (_memory_limit() or _MEMORY_UNKNOWN * _SHARE_OF_MEMORY) // _SHARE_OF_MEMORY
    return max(1, min(options.max_batch_tokens // tokens, budget // size))
