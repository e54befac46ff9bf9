"""The fused graphs at work, on a CPU or CUDA, and the native ones: the twin of `portable.py`.

Knows the graphs' inputs, which both sets share; knows no text and no search. Shapes: B sentences,
K beams, R = B * K rows, S source length, M capacity of the buffers, L layers, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.config import ModelConfig
from m2m100_onnx.bundle.graphs import FUSED_FILES, FUSED_SOURCE_FILE, NATIVE_SOURCE_FILE
from m2m100_onnx.model.blocks import (
    Block,
    HostBlock,
    Memory,
    cache_real_of,
    keys_and_values,
)
from m2m100_onnx.model.device_blocks import memory_of
from m2m100_onnx.model.in_place import CAPACITY, InPlaceState, cache_names, capacity_of
from m2m100_onnx.model.prefill import feed_by_steps, prefill_by_portable_graphs
from m2m100_onnx.model.sessions import Sessions
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import Int64Array

__all__ = ["FusedState", "Held", "encoded_source"]

_LONG_PROMPT = 8
"""Tokens of a prompt beyond which the portable graphs, which take them in one run, are faster."""


def encoded_source(
    memory: Memory,
    session: ort.InferenceSession,
    config: ModelConfig,
    input_ids: Int64Array,
    attention_mask: Int64Array,
) -> Block:
    """Returns the keys and values that each decoder layer makes of a source, `(2 * L, B, H, S, E)`.

    Args:
        memory: where they are to lie.
        session: the source graph's.
        config: the model's sizes.
        input_ids: `(B, S)` source tokens, padded at the end.
        attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
    """
    heads = config.decoder_attention_heads
    names = cache_names(config.decoder_layers, "encoder.")
    # The graph writes numbers of the type of activations, which memory may round.
    found = keys_and_values(
        memory.activations,
        session,
        {"input_ids": input_ids, "attention_mask": attention_mask},
        [name.replace("past_key_values", "present") for name in names],
        (len(input_ids), heads, input_ids.shape[1], config.d_model // heads),
    )
    return memory.rounded(found)


class Held(NamedTuple):
    """What a state holds of its N sentences, each of K beams that have been fed T tokens.

    Attributes:
        own: `(2 * L, N * K, H, M, E)` keys and values of the target.
        source: `(2 * L, N, H, S, E)` those of the source.
        mask: `(N, S)`.
        table: `(N, K, T)` in which beam's row the past of a beam lies.
        tokens: `(N * K, 1)` that wait to be fed.
    """

    own: npt.NDArray[Any]
    source: npt.NDArray[Any]
    mask: Int64Array
    table: npt.NDArray[np.int32]
    tokens: Int64Array


class FusedState(InPlaceState):
    """Keys and values of the target so far and of the source; a `DecoderState`."""

    def __init__(
        self,
        sessions: Sessions[Bundle],
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
        *,
        files: Sequence[str] = FUSED_FILES,
        serial: bool = False,
    ) -> None:
        """Encodes the source, and feeds the prompt but for its last token, which `best` feeds.

        Args:
            sessions: the bundle's sessions.
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens.
            files: the source graph, the step graph and the rank graph.
            serial: whether all runs stay in the caller's thread.
        """
        config = sessions.bundle.config
        source, step, rank = files
        heads = config.decoder_attention_heads
        shape = heads, config.d_model // heads
        names = cache_names(config.decoder_layers, "decoder.")
        self._source_names = cache_names(config.decoder_layers, "encoder.")
        self._mask = attention_mask.copy()
        real = cache_real_of(sessions.bundle, files)
        memory = memory_of(sessions, real)
        past = hidden_states = None
        # A long prompt has a cheaper way, but for native graphs, which take it in few runs: they
        # never round otherwise from processor to processor, as the portable ones do.
        if prompt.shape[1] > _LONG_PROMPT and source == FUSED_SOURCE_FILE:
            past, self._source = prefill_by_portable_graphs(
                sessions, memory, input_ids, self._mask, prompt[:, :-1]
            )
            prompt = prompt[:, -1:]
        else:
            session = sessions.get(source, serial=serial)
            self._source = encoded_source(memory, session, config, input_ids, self._mask)
        step_session = sessions.get(step, serial=serial)
        if source == NATIVE_SOURCE_FILE:
            inputs = self._source_inputs(memory)
            block, place, fed = feed_by_steps(step_session, inputs, names, shape, prompt, real)
            past, hidden_states = block.gathered(place), np.ascontiguousarray(fed[:, -1])
            prompt = prompt[:, -1:]
        super().__init__(
            step_session,
            sessions.get(rank, serial=serial),
            memory,
            vocab_size=config.vocab_size,
            row_shape=shape,
            cache_names=names,
            first_tokens=prompt[:, :1],
            past=past,
            hidden_states=hidden_states,
        )
        for column in range(1, prompt.shape[1]):
            self._feed()
            self.step(prompt[:, column : column + 1])

    @staticmethod
    def cache_bytes(
        bundle: Bundle,
        sentences: int,
        rows: int,
        source_length: int,
        target_length: int,
        *,
        files: Sequence[str] = FUSED_FILES,
        logits: bool = True,
    ) -> int:
        """Returns the bytes that a batch reserves when every row has `target_length` tokens.

        Keys and values are `2 * L * H * E * (R * M + B * S)` numbers. While buffers double, the old
        ones exist beside the new. Scores are `R * V` float32, and the graph's copies of them;
        native graphs never have all `logits`.
        """
        config = bundle.config
        capacity = capacity_of(target_length - 1)  # The last token is not fed.
        room = capacity if capacity == CAPACITY else capacity + capacity // 2
        width = 2 * config.decoder_layers * config.d_model
        cache = width * (rows * room + sentences * source_length)
        return (
            cache_real_of(bundle, files).itemsize * cache
            + 3 * 4 * rows * config.vocab_size * logits
        )

    def held(self) -> Held:
        """Returns what the state holds, for a joint state of native graphs."""
        assert isinstance(self._own, HostBlock)
        assert isinstance(self._source, HostBlock)
        length = int(self._past_length[0])
        table = self._indirection[:, :, :length]
        return Held(self._own.array, self._source.array, self._mask, table, self._tokens)

    def _inputs(self) -> Mapping[str, ort.OrtValue]:
        return self._source_inputs(self._memory)

    def _source_inputs(self, memory: Memory) -> Mapping[str, ort.OrtValue]:
        source = dict(zip(self._source_names, self._source.values, strict=True))
        return {"encoder_attention_mask": memory.value(self._mask), **source}

    def _keep(self, kept: Int64Array) -> None:
        """Drops the other sentences; the beams of a sentence share its source."""
        self._source = self._source.taken(kept, self._mask.shape[1])
        self._mask = self._mask[kept]
