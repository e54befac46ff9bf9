"""Tensors of a search on a device, whose memory numpy cannot reach: the twin of numpy's memory.

Knows onnxruntime's values and the graph of one node that moves rows; knows no beams. Shapes are
those of `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.model.blocks import Block, HostMemory, Memory, on_device, real_of
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.search.state import Int64Array

__all__ = ["DeviceMemory", "memory_of"]

_KEY_BYTES = 16
"""Bytes of a head that DecoderMaskedMultiHeadAttention keeps side by side in its keys on CUDA."""


class DeviceMemory(Memory):
    """A device's memory, which numpy cannot reach: a graph of one node moves rows there."""

    def __init__(self, sessions: Sessions[Any], packed: int | None = None) -> None:
        """Makes nothing yet.

        Args:
            sessions: the bundle's sessions.
            packed: how many numbers of a head the step graph keeps side by side in its keys, all
                positions of them before the next: `(R, H, E / packed, M, packed)`. By default as
                onnxruntime's attention does on CUDA.
        """
        self.real = real_of(sessions.bundle)
        self.place = sessions.factory.device, sessions.factory.device_id
        self.packed = packed or _KEY_BYTES // self.real.itemsize
        self._sessions = sessions

    def block(self, shape: tuple[int, int, int, int, int]) -> DeviceBlock:
        """Returns room for N tensors."""
        return DeviceBlock(self, shape, [self.room(shape[1:]) for _ in range(shape[0])])

    def of(self, values: Sequence[ort.OrtValue]) -> DeviceBlock:
        """Returns the tensors where they are."""
        r, h, m, e = values[0].shape()
        return DeviceBlock(self, (len(values), r, h, m, e), list(values))

    @property
    def activations(self) -> DeviceMemory:
        """This memory: a device keeps what activations are."""
        return self

    def rounded(self, block: Block) -> Block:
        """Returns the block, whose type is that of activations."""
        return block

    def room(self, shape: Sequence[int]) -> ort.OrtValue:
        """Returns room for a tensor."""
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), self.real.type, *self.place)

    def value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """Returns a copy on the device."""
        return on_device(array, self.place)

    def refresh(self, value: ort.OrtValue, array: npt.NDArray[Any]) -> None:
        """Copies the array to the device again."""
        value.update_inplace(np.ascontiguousarray(array))

    def empty(self, rows: int, width: int) -> ort.OrtValue:
        """Returns room for activations."""
        return self.room((rows, width))

    def gather(
        self,
        data: ort.OrtValue,
        view: tuple[int, int, int, int],
        rows: ort.OrtValue,
        found: ort.OrtValue,
    ) -> None:
        """Writes `data[rows]` to `found`, both seen as rows of the three last sizes of `view`."""
        session = self._sessions.gather(self.real.name)
        binding = session.io_binding()
        out = (rows.shape()[0], *view[1:])
        real = self.real.type
        binding.bind_input("data", *self.place, real, view, data.data_ptr())
        binding.bind_ortvalue_input("rows", rows)
        binding.bind_output("gathered", *self.place, real, out, found.data_ptr())
        run(session, binding)


class DeviceBlock(Block):
    """Tensors on a device, each in memory of its own; keys and values take turns."""

    def __init__(
        self,
        memory: DeviceMemory,
        shape: tuple[int, int, int, int, int],
        values: list[ort.OrtValue],
    ) -> None:
        self.shape = shape
        self._memory, self._values = memory, values

    @property
    def values(self) -> Sequence[ort.OrtValue]:
        """The tensors."""
        return self._values

    def fill(self, past: Block) -> None:
        """Writes another block's rows, which no attention has packed, to the first positions."""
        _, r, h, m, e = self.shape
        length, packed = past.shape[3], self._memory.packed
        for number, value in enumerate(past.values):
            whole = np.zeros((r, h, m, e), self._memory.real)
            whole[:, :, :length] = value.numpy()
            if number % 2 == 0:
                whole = whole.reshape(r, h, m, e // packed, packed).swapaxes(2, 3)
            self._memory.refresh(self._values[number], whole.reshape(r, h, m, e))

    def grown(self, capacity: int) -> DeviceBlock:
        """Returns a copy with room for more positions."""
        place = np.repeat(np.arange(self.shape[1])[:, None], self.shape[3], axis=1)
        return self._gathered(place, capacity)

    def taken(self, rows: Int64Array, _length: int, /) -> DeviceBlock:
        """Returns a copy of the rows, whatever their length."""
        n, r, *rest = self.shape
        h, m, e = rest
        found = self._memory.block((n, len(rows), h, m, e))
        index = self._memory.value(rows)
        for old, new in zip(self.values, found.values, strict=True):
            self._memory.gather(old, (r, h, m, e), index, new)
        return found

    def gathered(self, place: Int64Array) -> DeviceBlock:
        """Returns a copy; whole rows where each row's positions lay side by side."""
        if (place == place[:, :1]).all():
            rows = place[:, 0] if place.shape[1] else np.zeros(len(place), np.int64)
            return self.taken(rows, place.shape[1])
        return self._gathered(place, self.shape[3])

    def _gathered(self, place: Int64Array, capacity: int) -> DeviceBlock:
        n, r, h, m, e = self.shape
        found = self._memory.block((n, len(place), h, capacity, e))
        # (R', M'): where each position lay, a row's positions side by side; some number where none.
        length = place.shape[1]
        rows, positions = np.zeros((2, len(place), capacity), np.int64)
        rows[:, :length], positions[:, :length] = place, np.arange(length)
        packed = self._memory.packed
        for kind, parts in ((0, e // packed), (1, 1)):  # keys, values
            runs = h * parts  # stretches of M positions in a row
            starts = rows[:, None, :] * runs + np.arange(runs)[:, None]
            index = self._memory.value((starts * m + positions[:, None, :]).reshape(-1))
            view = (r * runs * m, 1, 1, e // parts)
            pairs = zip(self.values[kind::2], found.values[kind::2], strict=True)
            for old, new in pairs:
                self._memory.gather(old, view, index, new)
        return found


def memory_of(sessions: Sessions[Any], real: npt.DTypeLike = np.float32) -> Memory:
    """Returns the memory of the device that runs the sessions.

    Args:
        sessions: the bundle's sessions.
        real: the type of keys and values on a CPU; a device has that of activations.
    """
    return HostMemory(real) if sessions.factory.device == "cpu" else DeviceMemory(sessions)
