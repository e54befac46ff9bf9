"""A library in somebody's process: it leaves global state alone, and stdout to the program."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import BundleError, Translator
from m2m100_onnx.bundle.graphs import FUSED_FILES, GRAPH_FILES
from packing import tokens


def test_the_programs_random_numbers_stay_its_own(packed_bundle: Path, tmp_path: Path) -> None:
    """Opening, packing, reading what was packed, and translating draw from none of its seeds."""
    random.seed(5)
    np.random.seed(5)
    before, arrays = random.getstate(), np.random.get_state(legacy=False)
    for cache in (False, tmp_path / "cache", tmp_path / "cache"):
        tokens(packed_bundle, cache)
    assert random.getstate() == before
    np.testing.assert_equal(np.random.get_state(legacy=False), arrays)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [b"input_ids", b"MatMul"])
def test_a_damaged_graph_prints_nothing(
    name: bytes, fused: bool, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names that are no UTF-8: of inputs, and of operators, which are then in an error's message.

    It says on stdout then that it tries other providers, and gives a raw error.
    """
    path = bundle / (FUSED_FILES if fused else GRAPH_FILES)[0]
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, name[:-1] + b"\xe4"))
    for cache in (False, bundle / "cache"):
        with pytest.raises(BundleError, match="'utf-8' codec can't decode") as caught:
            Translator(bundle, cache_dir=cache, fused=fused)
        assert str(path) in str(caught.value)
    assert capfd.readouterr().out == ""
