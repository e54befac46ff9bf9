"""A translation model: the graphs of its bundle, and the states of its searches.

Knows which of the twins runs, `portable.py` or `fused.py`; both offer the search a `DecoderState`.
The fused one runs fused and native graphs, which have the same inputs and outputs.
"""

from __future__ import annotations

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.model.fused import FusedState
from m2m100_onnx.model.graphs import Graphs
from m2m100_onnx.model.portable import PortableState
from m2m100_onnx.search.state import DecoderState, Int64Array

__all__ = ["Model"]


class Model(Graphs[Bundle]):
    """The graphs of a translation model; many threads may use one at the same time."""

    def cache_bytes(self, sentences: int, rows: int, source_length: int, target_length: int) -> int:
        """Returns the bytes that a batch of these sizes reserves at most for cache and scores."""
        sizes = sentences, rows, source_length, target_length
        if self.fused:
            return FusedState.cache_bytes(self.bundle, *sizes, logits=not self.native)
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
