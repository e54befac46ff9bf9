"""Whole texts and pairs in batches: sorting, cutting and padding of what is read and not searched.

Knows token ids, lengths and budgets; knows no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from m2m100_onnx.engine.batches import LEAST_TOKENS_A_ROW, most_rows, padded
from m2m100_onnx.options import CallOptions
from m2m100_onnx.search.state import Int64Array

__all__ = ["Pairs", "Texts", "cut_pairs", "cut_texts"]

_MOST_OUTPUT = 1 << 27
"""Bytes of output that a batch of whole texts has at most, unless one text has more: 128 MiB."""


@dataclass(frozen=True)
class Texts:
    """Whole texts as a language model takes them.

    Attributes:
        places: `(B,)` index of each text among those that were cut.
        input_ids: `(B, S)` tokens, padded at the end.
        attention_mask: `(B, S)` 1 at tokens and 0 at padding.
        langs: `(B, S)` a language id at each position.
    """

    places: Int64Array
    input_ids: Int64Array
    attention_mask: Int64Array
    langs: Int64Array


@dataclass(frozen=True)
class Pairs:
    """Sources with whole targets, as a translation model takes them.

    Attributes:
        places: `(B,)` index of each pair among those that were cut.
        input_ids: `(B, S)` source tokens, padded at the end.
        attention_mask: `(B, S)` 1 at tokens and 0 at padding.
        target: `(B, T)` target tokens, padded at the end.
    """

    places: Int64Array
    input_ids: Int64Array
    attention_mask: Int64Array
    target: Int64Array


def cut_texts(
    rows: Sequence[Sequence[int]],
    langs: Sequence[int],
    pad_id: int,
    options: CallOptions,
    bytes_a_token: int,
) -> Iterator[Texts]:
    """Sorts whole texts, longest first, and cuts and pads them to batches within both budgets.

    Args:
        rows: the tokens of each text.
        langs: the language id of each text.
        pad_id: the token of padding.
        options: has the budgets.
        bytes_a_token: what the output of one position takes.
    """
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    start = 0
    while start < len(order):
        width = padded(len(rows[order[start]]))
        # Outputs are read where they are: no cache stays, and larger batches are no faster.
        most = most_rows(options, max(width, LEAST_TOKENS_A_ROW), width * bytes_a_token)
        most = max(1, min(most, _MOST_OUTPUT // (width * bytes_a_token)))
        places = order[start : start + most]
        ids, mask = _filled([rows[place] for place in places], pad_id)
        languages = np.repeat(np.array([[langs[place]] for place in places], np.int64), width, 1)
        yield Texts(np.array(places, np.int64), ids, mask, languages)
        start += most


def cut_pairs(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    pad_id: int,
    options: CallOptions,
    bytes_a_token: tuple[int, int],
) -> Iterator[Pairs]:
    """Sorts pairs, longest first, and cuts and pads them to batches within both budgets.

    Args:
        sources: the tokens of each source.
        targets: the tokens of each target; empty where only sources are read.
        pad_id: the token of padding.
        options: has the budgets.
        bytes_a_token: what the output of a position of a source and of a target takes.
    """
    order = sorted(range(len(sources)), key=lambda n: (-len(targets[n]), -len(sources[n])))
    places: list[int] = []
    for place in [*order, None]:
        if place is not None and _fits([*places, place], sources, targets, options, bytes_a_token):
            places.append(place)
            continue
        if places:
            ids, mask = _filled([sources[n] for n in places], pad_id)
            target, _ = _filled([targets[n] for n in places], pad_id)
            yield Pairs(np.array(places, np.int64), ids, mask, target)
        places = [place] if place is not None else []


def _fits(
    places: Sequence[int],
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    options: CallOptions,
    bytes_a_token: tuple[int, int],
) -> bool:
    """Says whether pairs may be one batch; one alone always may."""
    widths = [padded(max(len(rows[n]) for n in places)) for rows in (sources, targets)]
    size = sum(width * each for width, each in zip(widths, bytes_a_token, strict=True))
    most = most_rows(options, max(sum(widths), LEAST_TOKENS_A_ROW), size)
    return len(places) <= max(1, min(most, _MOST_OUTPUT // size))


def _filled(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int64Array, Int64Array]:
    """Returns rows of tokens, padded at the end, and the mask of what is no padding."""
    lengths = np.array([len(row) for row in rows])
    width = padded(int(lengths.max()))
    ids = np.full((len(rows), width), pad_id, np.int64)
    for filled, row in zip(ids, rows, strict=True):
        filled[: len(row)] = row
    return ids, (np.arange(width) < lengths[:, None]).astype(np.int64)
