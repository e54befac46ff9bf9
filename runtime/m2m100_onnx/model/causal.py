"""A language model: whole texts through its graph, and searches that go on from a prompt.

Knows the graphs' inputs and onnxruntime's bindings; knows no text. Shapes: B texts, S tokens of a
text, P tokens of a prompt, K beams, R = B * K rows, L layers, H heads, E head size, D width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from m2m100_onnx.bundle.graphs import FUSED_RANK_FILE, FUSED_STEP_FILE
from m2m100_onnx.bundle.language_graphs import (
    FUSED_PREFILL_FILE,
    MODEL_FILE,
    MODEL_WITH_PAST_FILE,
)
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.model.blocks import keys_and_values, on_device, real_of
from m2m100_onnx.model.device_blocks import memory_of
from m2m100_onnx.model.graphs import Graphs
from m2m100_onnx.model.growing import COPIES, GrowingState, bind_numpy
from m2m100_onnx.model.in_place import CAPACITY, InPlaceState, cache_names, capacity_of
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import DecoderState, Float32Array, Int64Array

__all__ = ["LanguageGraphs"]


class LanguageGraphs(Graphs[LanguageModelBundle]):
    """The graphs of a language model; many threads may use one at the same time."""

    def load_reader(self) -> None:
        """Opens the graph of whole texts now, so that no later call has to.

        Raises:
            BundleError: the graph is damaged or has another signature than it must.
        """
        self.sessions.get(MODEL_FILE)

    def run(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        langs: Int64Array,
        output: str = "logits",
    ) -> Float32Array:
        """Returns an output of the graph of whole texts.

        Args:
            input_ids: `(B, S)` tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            langs: `(B, S)` a language id at each position.
            output: `logits`, `(B, S, V)`, or `last_hidden_state`, `(B, S, D)`.

        Raises:
            BundleError: the graph is damaged.
            InferenceError: onnxruntime failed.
        """
        session = self.sessions.get(MODEL_FILE)
        config = self.bundle.config
        binding = session.io_binding()
        place = (self.device, self.device_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "langs": langs}
        # A binding keeps no reference to what it binds.
        values = {name: on_device(array, place) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        width = config.vocab_size if output == "logits" else config.d_model
        found = np.empty((*input_ids.shape, width), real_of(self.bundle))
        bind_numpy(binding, output, found)
        run(session, binding, only=True)
        return found.astype(np.float32, copy=False)

    def cache_bytes(self, rows: int, length: int) -> int:
        """Returns the bytes that a search reserves at most for cache and scores.

        Args:
            rows: R, the texts times the beams.
            length: tokens of a text, its prompt included.
        """
        config = self.bundle.config
        room = COPIES * length
        if self.fused:
            capacity = capacity_of(length - 1)  # The last token is not fed.
            room = capacity if capacity == CAPACITY else capacity + capacity // 2
        cache = 2 * config.layers * config.d_model * rows * room
        return real_of(self.bundle).itemsize * cache + 3 * 4 * rows * config.vocab_size

    def begin(self, prompt: Int64Array, langs: Int64Array, *, serial: bool = False) -> DecoderState:
        """Feeds prompts of one length, ready for a search.

        Args:
            prompt: `(B, P)` first tokens.
            langs: `(B,)` the language id of each text.
            serial: whether runs stay in the caller's thread; for fused graphs alone.

        Raises:
            BundleError: a graph is damaged.
            InferenceError: onnxruntime failed.
        """
        if self.fused:
            return _FusedState(self.sessions, prompt, langs, serial=serial)
        return _PortableState(self.sessions, prompt, langs)


class _FusedState(InPlaceState):
    """Keys and values of a text so far, in buffers; a `DecoderState`."""

    def __init__(
        self,
        sessions: Sessions[LanguageModelBundle],
        prompt: Int64Array,
        langs: Int64Array,
        *,
        serial: bool,
    ) -> None:
        config = sessions.bundle.config
        shape = config.heads, config.d_model // config.heads
        names = cache_names(config.layers)
        self._langs = langs  # (B,)
        self._langs_of_rows = langs[:, None].copy()
        past = None
        memory = memory_of(sessions)
        if prompt.shape[1] > 1:
            before = np.ascontiguousarray(prompt[:, :-1])
            past = keys_and_values(
                memory,
                sessions.get(FUSED_PREFILL_FILE, serial=serial),
                {"input_ids": before, "langs": _at_each(before, langs)},
                [name.replace("past_key_values", "present") for name in names],
                (len(before), shape[0], before.shape[1], shape[1]),
            )
        super().__init__(
            sessions.get(FUSED_STEP_FILE, serial=serial),
            sessions.get(FUSED_RANK_FILE, serial=serial),
            memory,
            vocab_size=config.vocab_size,
            row_shape=shape,
            cache_names=names,
            first_tokens=prompt[:, -1:],
            past=past,
        )

    def _inputs(self) -> Mapping[str, ort.OrtValue]:
        return {"langs": self._memory.value(self._langs_of_rows)}

    def _keep(self, kept: Int64Array) -> None:
        self._langs = self._langs[kept]
        self._langs_of_rows = np.repeat(self._langs, self._beams)[:, None]


class _PortableState(GrowingState):
    """Keys and values of a text so far, in tensors that grow; a `DecoderState`."""

    def __init__(
        self, sessions: Sessions[LanguageModelBundle], prompt: Int64Array, langs: Int64Array
    ) -> None:
        config = sessions.bundle.config
        super().__init__(sessions, MODEL_WITH_PAST_FILE, config.vocab_size)
        self._langs = langs[:, None]
        names = cache_names(config.layers)
        shape = (len(prompt), config.heads, 0, config.d_model // config.heads)
        own = {name: self._to_device(np.empty(shape, self._real)) for name in names}
        if prompt.shape[1] > 1:
            own = self._prefill(np.ascontiguousarray(prompt[:, :-1]), langs)
        self._open(own)
        self.step(prompt[:, -1:])

    @property
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""
        return len(self._langs)

    def select(self, rows: Int64Array) -> None:
        """Makes row i of every cached tensor a copy of old row `rows[i]`.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        self._move(rows)
        self._langs = self._langs[rows]
        self._bind_rest()

    def _bind_rest(self) -> None:
        self._languages = self._to_device(self._langs)
        self._binding.bind_ortvalue_input("langs", self._languages)

    def _prefill(self, prompt: Int64Array, langs: Int64Array) -> dict[str, ort.OrtValue]:
        """Feeds tokens; returns their keys and values by the step graph's names."""
        session = self._sessions.get(MODEL_FILE)
        binding = session.io_binding()
        inputs = {
            "input_ids": prompt,
            "attention_mask": np.ones_like(prompt),
            "langs": _at_each(prompt, langs),
        }
        # A binding keeps no reference to what it binds.
        values = {name: self._to_device(array) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        names = [o.name for o in session.get_outputs() if o.name.startswith("present.")]
        for name in names:
            binding.bind_output(name, *self._place)
        run(session, binding, only=True)
        past = zip(names, binding.get_outputs(), strict=True)
        return {name.replace("present", "past_key_values"): value for name, value in past}


def _at_each(prompt: Int64Array, langs: Int64Array) -> Int64Array:
    """Returns a text's language at each of its positions, `(B, P)`."""
    return np.repeat(langs[:, None], prompt.shape[1], axis=1)
