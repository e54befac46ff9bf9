"""No input of an operator ends the process: each run gives numpy's result, or an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fuzzing

pytest.importorskip(
    "m2m100_onnx_kernels", reason="m2m100-onnx-kernels is not installed", exc_type=ImportError
)

CASES = int(os.environ.get("M2M100_FUZZ_CASES", "150"))
"""Cases of each operator; `M2M100_FUZZ_CASES=20000` looks longer."""


@pytest.mark.parametrize("op", fuzzing.CASES)
def test_every_case_gives_a_result_or_an_error(op: str) -> None:
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, op, "0", str(CASES)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    # The last lines name the case, and what was wrong with it.
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-60:])
    results = int(done.stdout)
    assert CASES / 3 <= results <= CASES * 0.8, "all are right, or none that was changed"
