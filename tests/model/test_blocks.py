"""Blocks of a device's memory against numpy's, on the one device that is always there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import Bundle
from m2m100_onnx.model.blocks import Block, HostMemory, Memory
from m2m100_onnx.model.device_blocks import DeviceMemory
from m2m100_onnx.model.model import Model

SHAPE = (4, 5, 2, 7, 8)  # two layers' keys and values, 5 rows, 2 heads, 7 positions of 8 numbers


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle))


def seen(block: Block, packed: int) -> np.ndarray:
    """Returns the numbers as `(N, R, H, M, E)`, keys unpacked."""
    _, r, h, m, e = block.shape
    found = np.stack([value.numpy().reshape(r, h, m, e) for value in block.values])
    keys = found[::2].reshape(-1, r, h, e // packed, m, packed).swapaxes(3, 4)
    found[::2] = keys.reshape(-1, r, h, m, e)
    return found


@pytest.fixture(params=[8, 4])
def pair(model: Model, request: pytest.FixtureRequest) -> tuple[Block, Block, int]:
    """Two blocks that hold the same, one of numpy's memory and one of a device's."""
    past = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    packed: int = request.param
    device = DeviceMemory(model.sessions, packed)
    return filled(HostMemory(), past), filled(device, past), packed


def filled(memory: Memory, past: np.ndarray) -> Block:
    n, r, h, m, e = past.shape
    source = HostMemory().block((n, r, h, m, e))
    for value, tensor in zip(source.values, past, strict=True):
        value.update_inplace(tensor)
    block = memory.block((n, r, h, m, e))
    block.fill(source)
    return block


def test_a_block_holds_what_fills_it(pair: tuple[Block, Block, int]) -> None:
    host, device, packed = pair
    np.testing.assert_array_equal(seen(device, packed), seen(host, 8))


def test_rows_are_taken(pair: tuple[Block, Block, int]) -> None:
    host, device, packed = pair
    before, rows = seen(host, 8), np.array([1, 3, 4])
    for block, side in ((device, packed), (host, 8)):
        found = block.taken(rows, 4)
        assert found.shape == (4, 3, 2, 7, 8)
        np.testing.assert_array_equal(seen(found, side)[:, :, :, :4], before[:, rows][:, :, :, :4])


@pytest.mark.parametrize("length", [0, 1, 5, 7])
def test_positions_are_gathered(pair: tuple[Block, Block, int], length: int) -> None:
    host, device, packed = pair
    before = seen(host, 8)
    rng = np.random.default_rng(length)
    whole = np.repeat(np.arange(5), 2)[:, None]
    for place in (rng.integers(0, 5, (6, length)), np.repeat(whole, length, axis=1)):
        wanted = before[:, place, :, np.arange(length)].transpose(2, 0, 3, 1, 4)
        if length == 0:
            wanted = before[:, :1, :, :0].repeat(len(place), 1)
        for block, side in ((device, packed), (host, 8)):
            found = block.gathered(place)
            assert found.shape == (4, len(place), 2, 7, 8)
            np.testing.assert_array_equal(seen(found, side)[:, :, :, :length], wanted)


def test_a_block_grows(pair: tuple[Block, Block, int]) -> None:
    host, device, packed = pair
    before = seen(host, 8)
    for block, side in ((device, packed), (host, 8)):
        found = block.grown(14)
        assert found.shape == (4, 5, 2, 14, 8)
        np.testing.assert_array_equal(seen(found, side)[:, :, :, :7], before)
