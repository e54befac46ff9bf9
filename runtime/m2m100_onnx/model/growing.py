"""Searches on tensors that grow with each step: what the portable graphs' states share.

Runs on any device. Knows onnxruntime's bindings and the step graph's inputs; knows no text and no
search. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.model.blocks import on_device, real_of
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.ranking import rank
from m2m100_onnx.search.state import Float32Array, Int64Array, Ranked, Ranking

__all__ = ["COPIES", "GrowingState", "bind_numpy"]

COPIES = 5
"""Copies of a target's keys and values, measured as growth of the process.

A step joins old and new into one tensor, and a reordering gathers it. The tensors grow with each
step, so onnxruntime's arena cannot reuse the room of the last ones, and keeps it.
"""


class GrowingState(ABC):
    """Keys and values of the rows so far, on the device; a `DecoderState`.

    Attributes:
        vocab_size: V, the number of tokens.
        logits: `(R, V)` of the token after those that were fed. `best` overwrites the buffer, and
            the next step reuses it.
    """

    logits: Float32Array

    def __init__(self, sessions: Sessions[Any], step_file: str, vocab_size: int) -> None:
        """Opens the step graph; a subclass feeds the prompt.

        Args:
            sessions: the bundle's sessions.
            step_file: the graph that appends tokens.
            vocab_size: V.
        """
        self.vocab_size = vocab_size
        self._sessions, self._real = sessions, real_of(sessions.bundle)
        self._place = (sessions.factory.device, sessions.factory.device_id)
        self._step_file = step_file
        self._own: dict[str, ort.OrtValue] = {}
        self._moved: Int64Array | None = None  # rows of `logits` that `best` has to take
        self._step_logits = np.empty((0, 1, vocab_size), self._real)

    def _open(self, own: Mapping[str, ort.OrtValue]) -> None:
        """Opens the step graph.

        Args:
            own: keys and values of the tokens so far, by the step graph's names of its inputs.
        """
        self._session = self._sessions.get(self._step_file)
        self._binding = self._session.io_binding()
        self._present_names = [output.name for output in self._session.get_outputs()][1:]
        self._own = dict(own)
        self._bind_rest()

    @property
    @abstractmethod
    def rows(self) -> int:
        """R, the rows that a step takes and returns."""

    @abstractmethod
    def _bind_rest(self) -> None:
        """Binds the step graph's inputs beside new tokens and own keys and values."""

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
        bind_numpy(binding, "logits", self._step_logits)
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

    def _move(self, rows: Int64Array) -> None:
        """Makes row i of keys and values a copy of old row `rows[i]`, before the rows change."""
        if not np.array_equal(rows, np.arange(self.rows)):
            # What is bound stays in memory: first the past before the last step is let go.
            self._binding.clear_binding_inputs()
            index = self._to_device(rows)
            self._own = {name: self._gather(value, index) for name, value in self._own.items()}
            # Only now the past after it: with onnxruntime 1.21 the old values are views of it.
            self._binding.clear_binding_outputs()
            self._bind_rest()
            # A step usually follows, and overwrites them.
            self._moved = rows if self._moved is None else self._moved[rows]

    def _to_device(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        return on_device(array, self._place)

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


def bind_numpy(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    """Lets onnxruntime write an output straight into `array`, from any device."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
