"""Where the tensors of a search lie: in numpy's memory, or on a device.

Knows onnxruntime's values and bindings; knows no beams and no graph of a model. Shapes: N tensors
(keys and values of each layer in turn), R rows, H heads, M capacity, E head size, T positions.
"""

from __future__ import annotations

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle.folder import BundleFolder
from m2m100_onnx.model.sessions import Sessions, run
from m2m100_onnx.model.support import ort
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx.search.state import Float32Array, Int64Array

__all__ = [
    "Block",
    "Memory",
    "keys_and_values",
    "memory_of",
    "on_device",
    "real_of",
    "shared",
    "step_binding",
]

_LARGE = 1 << 20
"""Bytes from which on a block is memory of its own."""
_KEY_BYTES = 16
"""Bytes of a head that DecoderMaskedMultiHeadAttention keeps side by side in its keys on CUDA."""


class Block(ABC):
    """N tensors `(R, H, M, E)` that graphs read and write in place."""

    shape: tuple[int, int, int, int, int]

    @property
    @abstractmethod
    def values(self) -> Sequence[ort.OrtValue]:
        """The tensors, to be bound."""

    @abstractmethod
    def fill(self, past: Block) -> None:
        """Writes another block's rows to the first positions."""

    @abstractmethod
    def grown(self, capacity: int) -> Block:
        """Returns the block with room for more positions."""

    @abstractmethod
    def taken(self, rows: Int64Array, length: int, /) -> Block:
        """Returns `rows`, `rows[i]` at least i, up to a length; this block is used up."""

    @abstractmethod
    def gathered(self, place: Int64Array) -> Block:
        """Returns a block of the same capacity whose position `[r, t]` lay in row `place[r, t]`.

        Args:
            place: `(R', T)` rows.
        """


class Memory(ABC):
    """Makes what graphs read and write."""

    @abstractmethod
    def block(self, shape: tuple[int, int, int, int, int]) -> Block:
        """Returns room for N tensors, which hold no numbers yet."""

    @abstractmethod
    def of(self, values: Sequence[ort.OrtValue]) -> Block:
        """Returns tensors of one shape, which a graph has returned, as a block."""

    @abstractmethod
    def value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """Returns an input; the caller keeps the array."""

    @abstractmethod
    def refresh(self, value: ort.OrtValue, array: npt.NDArray[Any]) -> None:
        """Has `value`, which was made of `array`, hold the numbers that the array has now."""

    @abstractmethod
    def empty(self, rows: int, width: int) -> ort.OrtValue:
        """Returns room for activations `(R, D)` that one graph writes and another reads."""


class HostMemory(Memory):
    """numpy's memory, which onnxruntime shares."""

    def block(self, shape: tuple[int, int, int, int, int]) -> HostBlock:
        """Returns room for N tensors in one block, freed as a whole."""
        return HostBlock(_block(shape))

    def of(self, values: Sequence[ort.OrtValue]) -> HostBlock:
        """Returns a copy in one array."""
        return HostBlock(np.stack([value.numpy() for value in values]))

    def value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """Returns the array as an OrtValue, without a copy."""
        return shared(array)

    def refresh(self, value: ort.OrtValue, array: npt.NDArray[Any]) -> None:
        """Does nothing, since the memory is the same."""

    def empty(self, rows: int, width: int) -> ort.OrtValue:
        """Returns room for activations."""
        return ort.OrtValue.ortvalue_from_shape_and_type((rows, width), np.float32, "cpu", 0)


class HostBlock(Block):
    """Tensors in one numpy array `(N, R, H, M, E)`."""

    def __init__(self, array: Float32Array) -> None:
        self.array = array
        n, r, h, m, e = array.shape
        self.shape = n, r, h, m, e

    @property
    def values(self) -> Sequence[ort.OrtValue]:
        """The tensors, which share the array's memory."""
        return [shared(tensor) for tensor in self.array]

    def fill(self, past: Block) -> None:
        """Writes another block's rows to the first positions."""
        assert isinstance(past, HostBlock)
        self.array[:, :, :, : past.shape[3]] = past.array

    def grown(self, capacity: int) -> HostBlock:
        """Returns a copy with room for more positions."""
        n, r, h, m, e = self.shape
        array = _block((n, r, h, capacity, e))
        array[:, :, :, :m] = self.array
        return HostBlock(array)

    def taken(self, rows: Int64Array, length: int, /) -> HostBlock:
        """Moves rows to the front of the same array, and cuts it."""
        # Rows move forward only, so none is overwritten before it has moved.
        for row in np.flatnonzero(rows != np.arange(len(rows))):
            self.array[:, row, :, :length] = self.array[:, rows[row], :, :length]
        return HostBlock(self.array[:, : len(rows)])

    def gathered(self, place: Int64Array) -> HostBlock:
        """Returns a copy, tensor by tensor."""
        n, _, h, m, e = self.shape
        length = place.shape[1]
        array = _block((n, len(place), h, m, e))
        for old, new in zip(self.array, array, strict=True):
            past = old[place, :, np.arange(length)]  # (R', T, H, E)
            new[:, :, :length] = past.transpose(0, 2, 1, 3)
        return HostBlock(array)


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


def memory_of(sessions: Sessions[Any]) -> Memory:
    """Returns the memory of the device that runs the sessions."""
    return HostMemory() if sessions.factory.device == "cpu" else DeviceMemory(sessions)


def real_of(bundle: BundleFolder) -> np.dtype[Any]:
    """Returns the type of activations."""
    return np.dtype(np.float16 if bundle.precision == "fp16" else np.float32)


def on_device(array: npt.NDArray[Any], place: tuple[str, int]) -> ort.OrtValue:
    """Returns an array on a device; the CPU shares it and copies nothing.

    Args:
        array: the numbers.
        place: the kind of the device, and its number among those of its kind.
    """
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *place)


def keys_and_values(
    memory: Memory,
    session: ort.InferenceSession,
    inputs: Mapping[str, npt.NDArray[Any]],
    names: Sequence[str],
    shape: tuple[int, int, int, int],
) -> Block:
    """Runs a graph that computes keys and values.

    Args:
        memory: where its inputs and outputs lie.
        session: the graph.
        inputs: its inputs by name.
        names: its outputs, the keys and the values of each layer in turn.
        shape: that of each output.
    """
    found = memory.block((len(names), *shape))
    binding = session.io_binding()
    # A binding keeps no reference to what it binds, so each OrtValue stays in a variable.
    values = [memory.value(array) for array in inputs.values()]
    outputs = found.values
    for name, value in zip(inputs, values, strict=True):
        binding.bind_ortvalue_input(name, value)
    for name, value in zip(names, outputs, strict=True):
        binding.bind_ortvalue_output(name, value)
    run(session, binding)
    return found


def step_binding(
    session: ort.InferenceSession,
    inputs: Mapping[str, ort.OrtValue],
    cache: Mapping[str, ort.OrtValue],
    hidden_states: ort.OrtValue,
) -> ort.IOBinding:
    """Returns a binding of a step graph that writes new keys and values where the past lies.

    The caller keeps the values, since a binding keeps no reference to what it binds.

    Args:
        session: the graph.
        inputs: its inputs beside the cache, by name.
        cache: past keys and values, by name.
        hidden_states: room for the last layer's output, `(R, D)`.
    """
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in cache.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
    binding.bind_ortvalue_output("hidden_states", hidden_states)
    return binding


def shared(array: npt.NDArray[Any]) -> ort.OrtValue:
    """Returns the array as an OrtValue, without a copy; the caller keeps the array."""
    assert array.flags.c_contiguous
    return ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0)


def _block(shape: tuple[int, ...]) -> Float32Array:
    """Returns room for numbers; a large block is memory of its own, freed with the array.

    malloc may keep what is freed. glibc maps a first block of up to 32 MB apart, but takes all
    later blocks of that size from its heap, which then stays as large as the largest translation.
    And from 4 MB on numpy asks for huge pages, for which the kernel first compacts fragmented
    memory: that took up to a tenth of a whole translation.
    """
    size = 4 * math.prod(shape)
    if size < _LARGE:
        return np.empty(shape, np.float32)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        block = mmap.mmap(-1, size, **private)
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise MemoryError(f"no {size:,} bytes for keys and values: {error}") from error
    return np.frombuffer(block, np.float32).reshape(shape)
