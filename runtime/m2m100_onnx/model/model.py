"""A translation model: the graphs of its bundle, and the states of its searches.

Knows which of the twins runs, `portable.py` or `fused.py`; both offer the search a `DecoderState`.
The fused one runs fused and native graphs, which have the same inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.graphs import NATIVE_FP16_STEP_FILE
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.model.blocks import HostBlock, HostMemory, cache_real_of, on_device, real_of
from m2m100_onnx.model.fused import FusedState, encoded_source
from m2m100_onnx.model.graphs import Graphs
from m2m100_onnx.model.portable import PortableState, run_cross_attention, run_decoder, run_encoder
from m2m100_onnx.model.scoring import score_natively
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import DecoderState, Float32Array, Int64Array

__all__ = ["Model"]


class Model(Graphs[Bundle]):
    """The graphs of a translation model; many threads may use one at the same time."""

    def __init__(
        self, bundle: Bundle, *, kv_cache_dtype: str | None = None, **arguments: Any
    ) -> None:
        """Chooses device and graphs.

        `Translator` describes the arguments; the others and the errors are those of `Graphs`.

        Raises:
            InvalidInputError: `kv_cache_dtype` is neither the type of activations nor one that
                native graphs have, or these do not run.
            BundleError: the bundle was exported before its native graphs had such keys and values.
        """
        super().__init__(bundle, **arguments)
        own = real_of(bundle).name
        if kv_cache_dtype not in (None, own, *(("float16",) if self.native else ())):
            raise InvalidInputError(
                f"kv_cache_dtype: expected {own}, or float16 with native graphs, found "
                f"{kv_cache_dtype!r} with {self.kind} graphs"
            )
        if kv_cache_dtype in (None, own):
            return
        if not bundle.has_graph(NATIVE_FP16_STEP_FILE):
            raise BundleError(
                f"kv_cache_dtype: expected a bundle with {NATIVE_FP16_STEP_FILE}, found "
                f"{bundle.directory}, which was exported before there was one; export it again"
            )
        source, _, rank = self.files
        self.files = source, NATIVE_FP16_STEP_FILE, rank

    def cache_bytes(self, sentences: int, rows: int, source_length: int, target_length: int) -> int:
        """Returns the bytes that a batch of these sizes reserves at most for cache and scores."""
        sizes = sentences, rows, source_length, target_length
        if self.fused:
            files, logits = self.files, not self.native
            return FusedState.cache_bytes(self.bundle, *sizes, files=files, logits=logits)
        return PortableState.cache_bytes(self.bundle, *sizes)

    def begin(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
        *,
        serial: bool = False,
    ) -> DecoderState:
        """Encodes the source and feeds the prompt, ready for a search.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens: the start token and the target language.
            serial: whether runs stay in the caller's thread; for fused graphs alone.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed.
        """
        if self.fused:
            return FusedState(
                self.sessions, input_ids, attention_mask, prompt, files=self.files, serial=serial
            )
        return PortableState(self.sessions, input_ids, attention_mask, prompt)

    def encode_source(
        self, input_ids: Int64Array, attention_mask: Int64Array, *, serial: bool
    ) -> HostBlock:
        """Returns the keys and values that native graphs make of a source, `(2 * L, B, H, S, E)`.

        Arguments and errors are those of `begin`.
        """
        session = self.sessions.get(self.files[0], serial=serial)
        inputs = input_ids, attention_mask
        memory = HostMemory(cache_real_of(self.bundle, self.files))
        found = encoded_source(memory, session, self.bundle.config, *inputs)
        assert isinstance(found, HostBlock)
        return found

    def encode(self, input_ids: Int64Array, attention_mask: Int64Array) -> Float32Array:
        """Returns the encoder's output `(B, S, D)`; arguments and errors are those of `begin`."""
        hidden = run_encoder(self.sessions, *self._on_device(input_ids, attention_mask))
        found: Float32Array = hidden.numpy().astype(np.float32, copy=False)
        return found

    def target_logits(
        self, input_ids: Int64Array, attention_mask: Int64Array, target: Int64Array
    ) -> Float32Array:
        """Returns the logits `(B, T, V)` of the token after each of the target's.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            target: `(B, T)` decoder tokens, padded at the end.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed.
        """
        # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
        ids, mask, fed = self._on_device(input_ids, attention_mask, target)
        hidden = run_encoder(self.sessions, ids, mask)
        logits, _ = run_decoder(self.sessions, mask, fed, hidden, present=False)
        return logits.astype(np.float32, copy=False)

    def target_log_probs(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        target: Int64Array,
        following: Int64Array,
    ) -> Float32Array:
        """Returns the log-probability of the token after each of the target's, `(B, T)`.

        It runs the native graphs, so the model must have them.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            target: `(B, T)` decoder tokens, padded at the end.
            following: `(B, T)` the token after each; -1 where none is, and the result is NaN there.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed.
            InvalidInputError: a score is NaN.
        """
        assert self.native, "without native graphs there are logits"
        inputs = input_ids, attention_mask, target, following
        return score_natively(self.sessions, self.files, *inputs)

    def cross_attention(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        target: Int64Array,
        layers: Sequence[int],
    ) -> Float32Array:
        """Returns the attention `(B, L', H, T, S)` of each token of the target to the source.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            target: `(B, T)` decoder tokens, padded at the end.
            layers: L' layers of the decoder, from 0.

        Raises:
            BundleError: the bundle has no such graph, or it is damaged.
            InferenceError: onnxruntime failed.
        """
        ids, mask, fed = self._on_device(input_ids, attention_mask, target)
        hidden = run_encoder(self.sessions, ids, mask)
        weights = run_cross_attention(self.sessions, mask, fed, hidden, layers)
        return weights.astype(np.float32, copy=False)

    def _on_device(self, *arrays: Int64Array) -> list[ort.OrtValue]:
        return [on_device(array, (self.device, self.device_id)) for array in arrays]
