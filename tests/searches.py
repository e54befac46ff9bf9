"""What the tests of the search share: ids, names of options, when hypotheses are the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from m2m100_onnx.decoding import Hypothesis, SearchOptions

EOS, PAD = 2, 1


def describe(value: Any) -> str:
    if not isinstance(value, SearchOptions):
        return f"B{value}"
    plain = asdict(SearchOptions())
    found = asdict(value)
    return ",".join(f"{key}={found[key]}" for key in plain if found[key] != plain[key])


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    # Relative too: negative length penalties make scores of -1000, where float32 steps by 6e-5.
    np.testing.assert_allclose(
        [h.score for h in found], [h.score for h in expected], atol=1e-4, rtol=1e-6
    )
