"""The files of a packed graph: written anew as they were, and compared in part."""

from __future__ import annotations

import binascii
import os
from pathlib import Path

import pytest

from m2m100_onnx.bundle.graphs import FUSED_SOURCE_FILE
from m2m100_onnx.model import weights_cache_files
from m2m100_onnx.model.weights_cache import WEIGHTS, WeightsCache
from packing import entries, overwrite


@pytest.mark.parametrize("size", [1, 1 << 20, (9 << 20) + 5])
def test_what_is_rewritten_stays_what_it_was(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / WEIGHTS, os.urandom(size)
    path.write_bytes(data)
    record = weights_cache_files.rewrite(path)
    assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == [WEIGHTS]
    pieces = [data[start : start + (1 << 18)] for start in range(0, size, 1 << 18)]
    assert record["pieces"] == [binascii.crc32(piece) for piece in pieces]
    assert weights_cache_files.damage(path, record, sample=True) is None
    overwrite(path, bytes([data[-1] ^ 1]), size - 1, stealthy=True)
    assert "damaged at byte" in str(weights_cache_files.damage(path, record, sample=True))


def test_large_weights_are_compared_in_part(
    packed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and last piece at each load, another choice of the rest each time, all by `verify`."""
    monkeypatch.setattr(weights_cache_files, "_PIECE", 64)
    writes = []

    def write(graph: Path, weights: str) -> None:
        writes.append(graph)
        graph.write_bytes(b"graph")
        graph.with_name(weights).write_bytes(os.urandom(64 * 99 + 5))

    def load() -> Path:
        found = WeightsCache(tmp_path).graph(
            packed_bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}, write
        )
        assert found is not None
        return found.with_name(WEIGHTS)

    weights = load()
    for offset in (0, 64 * 99 + 4):
        before = len(writes)
        overwrite(weights, bytes([weights.read_bytes()[offset] ^ 1]), offset, stealthy=True)
        load()
        assert len(writes) == before + 1
    before = len(writes)
    # Whoever does not hide it is found out at once, wherever it is.
    overwrite(weights, bytes([weights.read_bytes()[3000] ^ 1]), 3000, stealthy=False)
    load()
    assert len(writes) == before + 1
    before = len(writes)
    overwrite(weights, bytes([weights.read_bytes()[3000] ^ 1]), 3000, stealthy=True)
    assert not entries(tmp_path)[FUSED_SOURCE_FILE].verify()
    # A load misses it with a probability of 6 in 7.
    assert any(load() and len(writes) > before for _ in range(300))
    assert entries(tmp_path)[FUSED_SOURCE_FILE].verify()
