"""A scripted model. Its logits are random numbers with a hash of the prefix as seed."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass, field

import numpy as np

from m2m100_onnx.search.state import Float32Array, Int64Array
from searches import EOS


@functools.cache
def scripted_logits(prefix: tuple[int, ...], vocab: int) -> Float32Array:
    seed = zlib.crc32(np.array(prefix, np.int64).tobytes())
    logits = np.random.default_rng(seed).normal(scale=2, size=vocab).astype(np.float32)
    logits[EOS] += 1
    logits.flags.writeable = False  # all callers share the array
    return logits


@dataclass
class ScriptedState:
    """Stores the prefix of each row, and logs the calls."""

    prefixes: list[tuple[int, ...]]
    vocab: int
    calls: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    selects: list[tuple[int, list[int]]] = field(default_factory=list)

    def logits(self) -> Float32Array:
        rows = [scripted_logits(prefix, self.vocab) for prefix in self.prefixes]
        return np.array(rows, np.float32).reshape(-1, self.vocab)

    def step(self, tokens: Int64Array) -> Float32Array:
        assert tokens.shape == (len(self.prefixes), 1)
        assert tokens.dtype == np.int64
        self.prefixes = [(*p, int(t)) for p, t in zip(self.prefixes, tokens[:, 0], strict=True)]
        self.calls.append("step")
        self.steps.append(len(self.prefixes))
        return self.logits()

    def select(self, rows: Int64Array) -> None:
        self.calls.append("select")
        self.selects.append((len(self.prefixes), rows.tolist()))
        self.prefixes = [self.prefixes[row] for row in rows]
