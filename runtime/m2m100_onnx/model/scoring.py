"""Log-probabilities of whole targets on the native graphs, which never have all logits.

Knows the native graphs' inputs; knows no text. Shapes: B pairs, S source length, T target tokens, V
vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.blocks import HostMemory, cache_real_of, shared
from m2m100_onnx.model.fused import encoded_source
from m2m100_onnx.model.head import Head
from m2m100_onnx.model.in_place import cache_names
from m2m100_onnx.model.prefill import feed_by_steps
from m2m100_onnx.model.sessions import Sessions
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranking

__all__ = ["score_natively"]

_ROWS = 64
"""Rows that the LM head takes at once: with more, each row takes as long."""


def score_natively(
    sessions: Sessions[Bundle],
    files: Sequence[str],
    input_ids: Int64Array,
    attention_mask: Int64Array,
    target: Int64Array,
    following: Int64Array,
) -> Float32Array:
    """Returns the log-probability of the token after each of the target's, `(B, T)`.

    They are those that greedy search gives these tokens, to the last bit.

    Args:
        sessions: the bundle's sessions.
        files: the native graphs that run: source, step and rank.
        input_ids: those of `Model.target_log_probs`, as the other arguments and the errors.
        attention_mask: `(B, S)`.
        target: `(B, T)`.
        following: `(B, T)`.
    """
    bundle = sessions.bundle
    config = bundle.config
    source, step, rank = files
    real = cache_real_of(bundle, files)
    shape = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    memory = HostMemory(real)
    session = sessions.get(source)
    encoded = encoded_source(memory, session, config, input_ids, attention_mask)
    own, past = (cache_names(config.decoder_layers, part) for part in ("decoder.", "encoder."))
    inputs = dict(zip(past, encoded.values, strict=True))
    inputs["encoder_attention_mask"] = memory.value(attention_mask)
    _, _, hidden_states = feed_by_steps(sessions.get(step), inputs, own, shape, target, real)
    found = np.full(following.size, np.nan, np.float32)
    rows = hidden_states.reshape(following.size, -1)
    places = np.flatnonzero(following.reshape(-1) >= 0)
    head_session = sessions.get(rank)
    for start in range(0, len(places), _ROWS):
        some = places[start : start + _ROWS]
        cells = np.stack([np.arange(len(some)), following.reshape(-1)[some]], axis=1)
        fed = rows[some]
        head = Head(head_session, config.vocab_size, shared(fed))
        found[some] = head.rank(Ranking(count=1, seen=cells))[1]
    if np.isnan(found[places]).any():
        raise InvalidInputError("logits: expected finite numbers, found NaN")
    return found.reshape(following.shape)
