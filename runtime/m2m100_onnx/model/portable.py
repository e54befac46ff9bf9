"""The portable graphs at work, on any device: the twin of `fused.py`.

Knows the three graphs' inputs and onnxruntime's bindings; knows no text and no beams. Shapes:
B sentences, R decoder rows (R = B, later B times the beams), S source length, P prompt length,
T target tokens so far, V vocabulary, L decoder layers, H heads, E head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.graphs import DECODER_FILE, DECODER_WITH_PAST_FILE, ENCODER_FILE
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.ranking import rank
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked, Ranking

__all__ = ["PortableState"]

_COPIES = 5
"""Copies of the target's keys and values, measured as growth of the process.

A step joins old and new into one tensor, and a reordering gathers it. The tensors grow with each
step, so onnxruntime's arena cannot reuse the room of the last ones, and keeps it.
"""


class PortableState:
    """Keys and values of the target so far and of the source, for R rows; a `DecoderState`.

    A sentence's beams share the keys and values of its source, which are computed once.

    Attributes:
        vocab_size: V, the number of tokens.
        logits: `(R, V)` of the token after those that were fed. `best` overwrites the buffer, and
            the next step reuses it.
    """

    def __init__(
        self,
        sessions: Sessions,
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
        self.vocab_size = bundle.config.vocab_size
        self._sessions, self._real = sessions, _real(bundle)
        self._place = (sessions.factory.device, sessions.factory.device_id)
        self._share_source = _beams_share_source(bundle)
        # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
        ids, mask, first = map(self._to_device, (input_ids, attention_mask, prompt))
        hidden = self._encode(ids, mask)
        self.logits, present = self._prefill(mask, first, hidden, prompt.shape)
        self._moved: Int64Array | None = None  # rows of `logits` that `best` has to take

        self._session = sessions.get(DECODER_WITH_PAST_FILE)
        self._binding = self._session.io_binding()
        self._present_names = [output.name for output in self._session.get_outputs()][1:]
        past = {name.replace("present", "past_key_values"): v for name, v in present.items()}
        self._own = {name: v for name, v in past.items() if ".decoder." in name}
        self._source = {name: v for name, v in past.items() if ".encoder." in name}
        self._mask = mask
        self._sentence_of_row = np.arange(len(prompt))
        self._step_logits = np.empty((0, 1, self.vocab_size), self._real)
        self._bind_source()

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
        cache = numbers * (_COPIES * rows * target_length + sources * source_length)
        return _real(bundle).itemsize * cache + 3 * 4 * rows * config.vocab_size

    @property
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""
        return len(self._sentence_of_row)

    def best(self, ranking: Ranking) -> Ranked:
        """Returns the best next tokens of each row; overwrites `logits`.

        Raises:
            InvalidInputError: a logit is NaN or +inf.
        """
        if self._moved is not None:
            self.logits, self._moved = self.logits[self._moved], None
        return rank(self.logits, ranking)

    def step(self, tokens: Int64Array) -> None:
        """Appends `tokens` `(R, 1)`, the ones that were chosen last.

        Raises:
            InferenceError: onnxruntime failed.
        """
        if len(self._step_logits) != self.rows:
            shape = (self.rows, *self._step_logits.shape[1:])
            self._step_logits = np.empty(shape, self._real)
        binding = self._binding
        ids = self._to_device(tokens)
        binding.bind_ortvalue_input("input_ids", ids)
        for name, value in self._own.items():
            binding.bind_ortvalue_input(name, value)
        binding.clear_binding_outputs()
        _bind_numpy(binding, "logits", self._step_logits)
        for name in self._present_names:
            binding.bind_output(name, *self._place)
        run(self._session, binding)
        grown = binding.get_outputs()[1:]
        self._own = {
            name.replace("present", "past_key_values"): value
            for name, value in zip(self._present_names, grown, strict=True)
        }
        self.logits = self._step_logits[:, -1].astype(np.float32, copy=False)
        self._moved = None

    def select(self, rows: Int64Array) -> None:
        """Makes row i of every cached tensor a copy of old row `rows[i]`.

        Covers beam expansion, beam reordering and dropping sentences. The rows of a sentence stay
        side by side, as many for each sentence.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        if not np.array_equal(rows, np.arange(self.rows)):
            # What is bound stays in memory: first the past before the last step is let go.
            self._binding.clear_binding_inputs()
            index = self._to_device(rows)
            self._own = {name: self._gather(value, index) for name, value in self._own.items()}
            # Only now the past after it: with onnxruntime 1.21 the old values are views of it.
            self._binding.clear_binding_outputs()
            self._bind_source()
            # A step usually follows, and overwrites them.
            self._moved = rows if self._moved is None else self._moved[rows]
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
            self._bind_source()
        self._sentence_of_row = sentence_of_row

    def _encode(self, ids: ort.OrtValue, mask: ort.OrtValue) -> ort.OrtValue:
        """Returns the encoder's `(B, S, D)` output."""
        session = self._sessions.get(ENCODER_FILE)
        binding = session.io_binding()
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", mask)
        binding.bind_output("last_hidden_state", *self._place)
        run(session, binding)
        return binding.get_outputs()[0]

    def _prefill(
        self, mask: ort.OrtValue, first: ort.OrtValue, hidden: ort.OrtValue, shape: tuple[int, int]
    ) -> tuple[Float32Array, dict[str, ort.OrtValue]]:
        """Feeds the prompt; returns the `(B, V)` logits of the next token, and keys and values."""
        session = self._sessions.get(DECODER_FILE)
        binding = session.io_binding()
        binding.bind_ortvalue_input("encoder_attention_mask", mask)
        binding.bind_ortvalue_input("input_ids", first)
        binding.bind_ortvalue_input("encoder_hidden_states", hidden)
        logits = np.empty((*shape, self.vocab_size), self._real)
        _bind_numpy(binding, "logits", logits)
        names = [output.name for output in session.get_outputs()][1:]
        for name in names:
            binding.bind_output(name, *self._place)
        run(session, binding)
        present = dict(zip(names, binding.get_outputs()[1:], strict=True))
        return logits[:, -1].astype(np.float32), present

    def _bind_source(self) -> None:
        self._binding.bind_ortvalue_input("encoder_attention_mask", self._mask)
        for name, value in self._source.items():
            self._binding.bind_ortvalue_input(name, value)

    def _to_device(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """Returns an array where the graphs run; the CPU shares it and copies nothing."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._place)

    def _gather(self, value: ort.OrtValue, rows: ort.OrtValue) -> ort.OrtValue:
        """Returns `value[rows]` along the first axis, on the device.

        numpy cannot reach device memory, so a graph of one node gathers.
        """
        session = self._sessions.gather(self._real.name)
        binding = session.io_binding()
        binding.bind_ortvalue_input("data", value)
        binding.bind_ortvalue_input("rows", rows)
        binding.bind_output("gathered", *self._place)
        run(session, binding)
        return binding.get_outputs()[0]


def _real(bundle: Bundle) -> np.dtype[Any]:
    """Returns the type of activations."""
    return np.dtype(np.float16 if bundle.precision == "fp16" else np.float32)


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


def _bind_numpy(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    """Lets onnxruntime write an output straight into `array`, from any device."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
