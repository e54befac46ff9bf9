"""Where the tensors of a search lie: in numpy's memory, or on a device (`device_blocks.py`).

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
from m2m100_onnx.bundle.graphs import NATIVE_FP16_STEP_FILE
from m2m100_onnx.model.sessions import run
from m2m100_onnx.model.support import ort
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx.search.state import Int64Array

__all__ = [
    "Block",
    "Memory",
    "cache_real_of",
    "keys_and_values",
    "on_device",
    "real_of",
    "shared",
    "step_binding",
]

_LARGE = 1 << 20
"""Bytes from which on a block is memory of its own."""


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

    @property
    @abstractmethod
    def activations(self) -> Memory:
        """The same memory for numbers of the type of activations."""

    @abstractmethod
    def rounded(self, block: Block) -> Block:
        """Returns a block of the type of activations as one of this memory's; it is used up."""

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

    def __init__(self, real: npt.DTypeLike = np.float32) -> None:
        """Makes nothing yet.

        Args:
            real: the type of keys and values.
        """
        self.real = np.dtype(real)

    def block(self, shape: tuple[int, int, int, int, int]) -> HostBlock:
        """Returns room for N tensors in one block, freed as a whole."""
        return HostBlock(_block(shape, self.real))

    def of(self, values: Sequence[ort.OrtValue]) -> HostBlock:
        """Returns a copy in one array."""
        return HostBlock(np.stack([value.numpy() for value in values]))

    @property
    def activations(self) -> HostMemory:
        """Numpy's memory for float32, which activations are on a CPU."""
        return HostMemory()

    def rounded(self, block: Block) -> HostBlock:
        """Returns the block itself, or a copy in another type."""
        assert isinstance(block, HostBlock)
        return HostBlock(block.array.astype(self.real, copy=False))

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

    def __init__(self, array: npt.NDArray[Any]) -> None:
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
        array = _block((n, r, h, capacity, e), self.array.dtype)
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
        array = _block((n, len(place), h, m, e), self.array.dtype)
        for old, new in zip(self.array, array, strict=True):
            past = old[place, :, np.arange(length)]  # (R', T, H, E)
            new[:, :, :length] = past.transpose(0, 2, 1, 3)
        return HostBlock(array)


def real_of(bundle: BundleFolder) -> np.dtype[Any]:
    """Returns the type of activations."""
    return np.dtype(np.float16 if bundle.precision == "fp16" else np.float32)


def cache_real_of(bundle: BundleFolder, files: Sequence[str]) -> np.dtype[Any]:
    """Returns the type of keys and values that graphs take."""
    return np.dtype(np.float16) if NATIVE_FP16_STEP_FILE in files else real_of(bundle)


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


def _block(shape: tuple[int, ...], real: np.dtype[Any]) -> npt.NDArray[Any]:
    """Returns room for numbers; a large block is memory of its own, freed with the array.

    malloc may keep what is freed. glibc maps a first block of up to 32 MB apart, but takes all
    later blocks of that size from its heap, which then stays as large as the largest translation.
    And from 4 MB on numpy asks for huge pages, for which the kernel first compacts fragmented
    memory: that took up to a tenth of a whole translation.
    """
    size = real.itemsize * math.prod(shape)
    if size < _LARGE:
        return np.empty(shape, real)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        block = mmap.mmap(-1, size, **private)
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise MemoryError(f"no {size:,} bytes for keys and values: {error}") from error
    return np.frombuffer(block, real).reshape(shape)
