"""The portable graphs at work, on any device: the twin of `fused.py`.

Knows the three graphs' inputs and onnxruntime's bindings; knows no text and no beams. Shapes:
B sentences, R decoder rows (R = B, later B times the beams), S source length, P prompt length,
T target tokens so far, V vocabulary, L decoder layers, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    DECODER_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
)
from m2m100_onnx.errors import BundleError
from m2m100_onnx.model.blocks import real_of
from m2m100_onnx.model.growing import COPIES, GrowingState, bind_numpy
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import Int64Array

__all__ = ["PortableState", "run_decoder", "run_encoder"]


class PortableState(GrowingState):
    """Keys and values of the target so far and of the source, for R rows; a `DecoderState`.

    A sentence's beams share the keys and values of its source, which are computed once.
    """

    def __init__(
        self,
        sessions: Sessions[Bundle],
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
    ) -> None:
        """Encodes the source and feeds the prompt.

        Args:
            sessions: the bundle's sessions.
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens.
        """
        bundle = sessions.bundle
        super().__init__(sessions, DECODER_WITH_PAST_FILE, bundle.config.vocab_size)
        self._share_source = _beams_share_source(bundle)
        # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
        ids, mask, first = map(self._to_device, (input_ids, attention_mask, prompt))
        hidden = run_encoder(sessions, ids, mask)
        logits, present = run_decoder(sessions, mask, first, hidden, present=True)
        self.logits = logits[:, -1].astype(np.float32)
        past = {name.replace("present", "past_key_values"): v for name, v in present.items()}
        self._source = {name: v for name, v in past.items() if ".encoder." in name}
        self._mask = mask
        self._sentence_of_row = np.arange(len(prompt))
        self._open({name: v for name, v in past.items() if ".decoder." in name})

    @staticmethod
    def cache_bytes(
        bundle: Bundle, sentences: int, rows: int, source_length: int, target_length: int
    ) -> int:
        """Returns the bytes that a batch takes when every row has `target_length` tokens.

        Keys and values are `2 * L * H * E * (R * T + B * S)` numbers, of which the target's part
        exists in several copies. Scores are `R * V` numbers, and their copies.
        """
        config = bundle.config
        numbers = 2 * config.decoder_layers * config.d_model
        # Folders that Optimum exported repeat the source's keys and values for every beam.
        sources = sentences if _beams_share_source(bundle) else rows
        cache = numbers * (COPIES * rows * target_length + sources * source_length)
        return real_of(bundle).itemsize * cache + 3 * 4 * rows * config.vocab_size

    @property
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""
        return len(self._sentence_of_row)

    def select(self, rows: Int64Array) -> None:
        """Makes row i of every cached tensor a copy of old row `rows[i]`.

        Covers beam expansion, beam reordering and dropping sentences. The rows of a sentence stay
        side by side, as many for each sentence.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        self._move(rows)
        sentence_of_row = self._sentence_of_row[rows]
        if self._share_source:
            kept, sentence_of_row = _sentences(sentence_of_row)
            changed = not np.array_equal(kept, np.arange(self._mask.shape()[0]))
        else:
            # Each row has a copy. Those of a sentence are alike, so reordering changes nothing.
            kept, changed = rows, not np.array_equal(sentence_of_row, self._sentence_of_row)
        if changed:
            index = self._to_device(kept)
            self._source = {name: self._gather(v, index) for name, v in self._source.items()}
            self._mask = self._to_device(self._mask.numpy()[kept])
            self._bind_rest()
        self._sentence_of_row = sentence_of_row

    def _bind_rest(self) -> None:
        self._binding.bind_ortvalue_input("encoder_attention_mask", self._mask)
        for name, value in self._source.items():
            self._binding.bind_ortvalue_input(name, value)


def run_encoder(sessions: Sessions[Bundle], ids: ort.OrtValue, mask: ort.OrtValue) -> ort.OrtValue:
    """Returns the encoder's `(B, S, D)` output, on the device.

    Args:
        sessions: the bundle's sessions.
        ids: `(B, S)` source tokens, on the device.
        mask: `(B, S)`, 1 at tokens and 0 at padding, on the device.
    """
    session = sessions.get(ENCODER_FILE)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input_ids", ids)
    binding.bind_ortvalue_input("attention_mask", mask)
    binding.bind_output("last_hidden_state", sessions.factory.device, sessions.factory.device_id)
    run(session, binding)
    return binding.get_outputs()[0]


def run_decoder(
    sessions: Sessions[Bundle],
    mask: ort.OrtValue,
    target: ort.OrtValue,
    hidden: ort.OrtValue,
    *,
    present: bool,
) -> tuple[npt.NDArray[Any], dict[str, ort.OrtValue]]:
    """Feeds whole targets.

    Args:
        sessions: the bundle's sessions.
        mask: `(B, S)` of the sources, on the device.
        target: `(B, T)` target tokens, on the device.
        hidden: what the encoder returned.
        present: whether keys and values are wanted.

    Returns:
        The `(B, T, V)` logits of each next token, of the bundle's type; keys and values, by name.
    """
    session = sessions.get(DECODER_FILE)
    binding = session.io_binding()
    binding.bind_ortvalue_input("encoder_attention_mask", mask)
    binding.bind_ortvalue_input("input_ids", target)
    binding.bind_ortvalue_input("encoder_hidden_states", hidden)
    bundle = sessions.bundle
    logits = np.empty((*target.shape(), bundle.config.vocab_size), real_of(bundle))
    bind_numpy(binding, "logits", logits)
    names = [output.name for output in session.get_outputs()][1:] if present else []
    for name in names:
        binding.bind_output(name, sessions.factory.device, sessions.factory.device_id)
    run(session, binding, only=not present)
    return logits, dict(zip(names, binding.get_outputs()[1:], strict=True))


def run_cross_attention(
    sessions: Sessions[Bundle],
    mask: ort.OrtValue,
    target: ort.OrtValue,
    hidden: ort.OrtValue,
    layers: Sequence[int],
) -> npt.NDArray[Any]:
    """Returns attention of whole targets to their sources, `(B, L', H, T, S)` of some layers.

    Other arguments are those of `run_decoder`.

    Raises:
        BundleError: the bundle has no such graph.
    """
    bundle = sessions.bundle
    if not bundle.has_cross_attention:
        raise BundleError(
            f"{bundle.directory}: expected {CROSS_ATTENTION_FILE} for alignments, found none, as "
            "in bundles that were exported before; export the checkpoint again"
        )
    session = sessions.get(CROSS_ATTENTION_FILE)
    binding = session.io_binding()
    binding.bind_ortvalue_input("encoder_attention_mask", mask)
    binding.bind_ortvalue_input("input_ids", target)
    binding.bind_ortvalue_input("encoder_hidden_states", hidden)
    rows, length = target.shape()
    shape = rows, bundle.config.decoder_attention_heads, length, mask.shape()[1]
    weights = [np.empty(shape, real_of(bundle)) for _ in layers]
    for layer, array in zip(layers, weights, strict=True):
        bind_numpy(binding, f"cross_attentions.{layer}", array)
    run(session, binding, only=True)
    return np.stack(weights, axis=1)


def _beams_share_source(bundle: Bundle) -> bool:
    """Says whether rows may be a multiple of the sentences; those of Optimum's graphs may not."""
    return bundle.manifest is not None


def _sentences(sentence_of_row: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Returns the sentences that are left, in order, and each row's place among them."""
    starts = np.flatnonzero(np.diff(sentence_of_row, prepend=-1))
    kept = sentence_of_row[starts]
    per_sentence = len(sentence_of_row) // len(kept)
    assert np.array_equal(np.repeat(kept, per_sentence), sentence_of_row), "rows lie scattered"
    return kept, np.repeat(np.arange(len(kept)), per_sentence)
