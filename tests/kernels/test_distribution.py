"""The distribution m2m100-onnx-kernels: its library, its versions, and how it is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from m2m100_onnx.bundle.graphs import OPERATORS_VERSION

kernels = pytest.importorskip(
    "m2m100_onnx_kernels", reason="m2m100-onnx-kernels is not installed", exc_type=ImportError
)

NAME = """
import ctypes, m2m100_onnx_kernels
name = ctypes.CDLL(str(m2m100_onnx_kernels.library_path())).m2m100_kernels_name
name.restype = ctypes.c_char_p
print(name())
"""
REGISTER = """
import onnxruntime, m2m100_onnx_kernels
path = str(m2m100_onnx_kernels.library_path())
onnxruntime.SessionOptions().register_custom_ops_library(path)
"""


def run(program: str, instructions: str) -> subprocess.CompletedProcess[str]:
    """Runs a program on an instruction set."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "M2M100_KERNELS": instructions, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


def test_versions_are_one(repository: Path) -> None:
    assert kernels.__version__ == metadata.version("m2m100-onnx-kernels")
    header = (repository / "runtime/kernels/src/operator.h").read_text()
    (found,) = re.findall(r"kOperatorsVersion = (\d+)", header)
    assert kernels.OPERATORS_VERSION == OPERATORS_VERSION == int(found)


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_two_functions_are_exported() -> None:
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(kernels.library_path())],
        check=True,
        capture_output=True,
        text=True,
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names == {"RegisterCustomOps", "m2m100_kernels_name"}


def test_the_environment_chooses_instructions() -> None:
    assert run(NAME, "plain").stdout.strip() == "b'plain'"
    automatic = run(NAME, "").stdout.strip()
    assert automatic not in ("", "None")
    assert run(REGISTER, "").returncode == 0


def test_instructions_that_do_not_exist() -> None:
    assert run(NAME, "sse9").stdout.strip() == "None"
    refused = run(REGISTER, "sse9")
    assert re.search(r"M2M100_KERNELS: expected one .*plain; found sse9", refused.stderr)


def test_a_package_without_its_library(tmp_path: Path) -> None:
    assert kernels.library_path().is_file()
    shutil.copy(str(kernels.__file__), tmp_path / "kernels_alone.py")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import kernels_alone; kernels_alone.library_path()"
    )
    error = f"ImportError: expected libm2m100_onnx_kernels.so in {tmp_path}, found none"
    assert error in run(program, "").stderr


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler (no-such-compiler)"),
        ({"CXX": "true"}, "there are no headers of onnxruntime"),
        ({"CXX": "false"}, "false is no C++ compiler as new as GCC 11 or Clang 12"),
    ],
    ids=["no_compiler", "no_headers", "an_old_compiler"],
)
def test_the_script_says_why_it_builds_nothing(
    repository: Path, tmp_path: Path, variable: dict[str, str], words: str
) -> None:
    done = subprocess.run(
        [repository / "scripts/kernels"],
        env={**os.environ, "ONNXRUNTIME_INCLUDE_DIR": str(tmp_path), **variable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"kernels: not built: {words};" in done.stderr
