"""Feeds many tokens of a prompt in one run, for searches on buffers.

Knows the inputs of the step graph and of the portable graphs; knows no search. Shapes: B sentences,
P tokens of a prompt, C tokens of a run, L layers, H heads, E head size, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.model.blocks import Block, HostMemory, Memory, shared, step_binding
from m2m100_onnx.model.portable import run_decoder, run_encoder
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import Float32Array, Int64Array

__all__ = ["feed_by_steps", "prefill_by_portable_graphs"]

_MOST_ROOM = 1 << 28
"""Bytes of the buffers of one run, unless a single token a sentence needs more: 256 MiB."""


def prefill_by_portable_graphs(
    sessions: Sessions[Bundle],
    memory: Memory,
    input_ids: Int64Array,
    mask: Int64Array,
    prompt: Int64Array,
) -> tuple[Block, Block]:
    """Feeds a prompt to the portable graphs, which take whole targets.

    Args:
        sessions: the bundle's sessions.
        memory: where keys and values are to lie.
        input_ids: `(B, S)` source tokens, padded at the end.
        mask: `(B, S)`, 1 at tokens and 0 at padding.
        prompt: `(B, P)` decoder tokens.

    Returns:
        Keys and values of the prompt, and of the source.
    """
    # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
    prompt = np.ascontiguousarray(prompt)
    ids, own_mask, fed = (memory.value(array) for array in (input_ids, mask, prompt))
    hidden = run_encoder(sessions, ids, own_mask)
    _, present = run_decoder(sessions, own_mask, fed, hidden, present=True)
    blocks = (
        memory.of([value for name, value in present.items() if f".{part}." in name])
        for part in ("decoder", "encoder")
    )
    return next(blocks), next(blocks)


def feed_by_steps(
    step: ort.InferenceSession,
    source: Mapping[str, ort.OrtValue],
    names: Sequence[str],
    row_shape: tuple[int, int],
    target: Int64Array,
    real: np.dtype[Any],
) -> tuple[Block, Int64Array, Float32Array]:
    """Feeds tokens to the native step graph, many a run.

    The tokens of a sentence are fed as if they were its beams. Each row has a past length of its
    own, and the graph writes the keys and values of all rows before any row reads them. So a table
    tells each token where those before it lie. Five tokens in two runs of three rows, the last of
    which feeds token 2 again:

        run  row  token  past_length  cache_indirection
         0    0     0         0        0  .  .  .  .
              1     1         1        0  1  .  .  .
              2     2         2        0  1  2  .  .
         1    0     2         2        0  1  0  .  .
              1     3         3        0  1  0  1  .
              2     4         4        0  1  0  1  2

    Rows do not change each other's bits, so this gives those of one token after the other.

    Args:
        step: the native step graph's session, which runs on a CPU.
        source: the graph's inputs about the source, by name.
        names: the graph's names of past keys and values, of each layer in turn.
        row_shape: H and E.
        target: `(B, P)` decoder tokens.
        real: the type of keys and values.

    Returns:
        A block of keys and values; `(B, P)`, the row of it in which each token's lie; and the last
        layer's output at each token, `(B, P, D)`.
    """
    count, length = target.shape
    heads, size = row_shape
    fed = _tokens_a_run(length, real.itemsize * len(names) * count * heads * size)
    block = HostMemory(real).block((len(names), count * fed, heads, length, size))
    cache = dict(zip(names, block.values, strict=True))
    hidden_states = np.empty((count, length, heads * size), np.float32)
    found = np.empty((count * fed, heads * size), np.float32)
    beams = np.array([fed], np.int32)
    table = np.zeros((count, fed, length), np.int32)
    for end in [*range(fed, length, fed), length]:
        start = end - fed
        table[:, :, start:end] = np.arange(fed, dtype=np.int32)
        inputs = {
            "input_ids": np.ascontiguousarray(target[:, start:end]).reshape(-1, 1),
            "past_length": np.tile(np.arange(start, end, dtype=np.int32), count),
            "cache_indirection": table,
        }
        values = {name: shared(array) for name, array in inputs.items()}
        inputs_now = {**values, "beam_size": shared(beams), **source}
        run(step, step_binding(step, inputs_now, cache, shared(found)))
        hidden_states[:, start:end] = found.reshape(count, fed, -1)
    return block, table[:, 0] + fed * np.arange(count)[:, None], hidden_states


def _tokens_a_run(length: int, a_position: int) -> int:
    """Returns how many tokens of each sentence a run takes: one at least, and as many in each run.

    Args:
        length: P.
        a_position: bytes of a position of one row of each sentence.
    """
    most = max(1, _MOST_ROOM // (length * a_position))
    return -(-length // -(-length // most))
