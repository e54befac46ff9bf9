"""What a service installs: its public names, and that it needs no torch, transformers or onnx."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import m2m100_onnx
import m2m100_onnx_export
from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx_export.graphs.builder import build_gather


@pytest.mark.parametrize("package", [m2m100_onnx, m2m100_onnx_export])
def test_all_is_complete(package: ModuleType) -> None:
    names = package.__all__
    assert len(names) == len(set(names))
    assert all(getattr(package, name) is not None for name in names)
    shown = {
        name
        for name in dir(package)
        if not name.startswith("_") and not isinstance(getattr(package, name), ModuleType)
    }
    assert shown == set(names) - {"__version__"}


def test_unknown_name() -> None:
    assert not hasattr(m2m100_onnx, "Translater")


def test_every_public_name_is_offered_by_a_module() -> None:
    offered = {"__version__"}
    for name in m2m100_onnx._HOMES:
        module = importlib.import_module(f"m2m100_onnx.{name}")
        assert len(module.__all__) == len(set(module.__all__))
        assert all(hasattr(module, each) for each in module.__all__)
        offered |= set(module.__all__)
    assert set(m2m100_onnx.__all__) <= offered


def test_every_error_is_public() -> None:
    errors = {m2m100_onnx.M2M100Error}
    while more := {child for error in errors for child in error.__subclasses__()} - errors:
        errors |= more
    ours = {error.__name__ for error in errors if error.__module__ == "m2m100_onnx.errors"}
    assert ours == set(importlib.import_module("m2m100_onnx.errors").__all__)
    assert ours <= set(m2m100_onnx.__all__)


def test_public_names_are_documented() -> None:
    for name in m2m100_onnx.__all__:
        if name != "__version__":
            assert getattr(m2m100_onnx, name).__doc__, name


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", m2m100_onnx.__version__)


def test_version_is_the_installed_one(repository: Path) -> None:
    """Where it is installed from elsewhere, or not at all, there is nothing to compare."""
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert 'path = "runtime/m2m100_onnx/__init__.py"' in text
    found = {d.version for d in metadata.distributions() if d.metadata["Name"] == "m2m100-onnx"}
    assert found <= {m2m100_onnx.__version__}


# Finds what is blocked first and says that it is not there.
BLOCK = """
import sys

BLOCKED = {blocked!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

TRANSLATE = """
from m2m100_onnx import Translator

translator = Translator(sys.argv[1], intra_op_num_threads=1)
for beam_size in (1, 5):
    sys.stdout.buffer.write(
        translator.translate(
            "Open the file.", source_lang="en", target_lang="zh", beam_size=beam_size
        ).encode("utf-8") + b"\\n"
    )
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & BLOCKED, loaded & BLOCKED
assert {"m2m100_onnx", "numpy", "onnxruntime", "sentencepiece"} <= loaded
"""

IMPORT = """
from m2m100_onnx import DependencyError, Tokenizer

try:
    from m2m100_onnx import Translator
except DependencyError as error:
    assert isinstance(error, ImportError)
    print(error)
"""


def run(repository: Path, folder: Path, blocked: set[str], code: str, *arguments: str) -> str:
    """Runs code with only the runtime on the path, in a folder of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *arguments],
        env={**os.environ, "PYTHONPATH": str(repository / "runtime")},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BANNED = {"torch", "transformers", "onnx", "safetensors", "huggingface_hub", "m2m100_onnx_export"}


def test_runtime_translates_without_the_exporters_packages(
    repository: Path, demo_bundle: Path, tmp_path: Path, translator: m2m100_onnx.Translator
) -> None:
    found = run(repository, tmp_path, BANNED, TRANSLATE, str(demo_bundle)).splitlines()
    assert found == [
        translator.translate("Open the file.", source_lang="en", target_lang="zh", beam_size=size)
        for size in (1, 5)
    ]


def test_missing_onnxruntime(repository: Path, tmp_path: Path) -> None:
    found = run(repository, tmp_path, BANNED | {"onnxruntime"}, IMPORT)
    assert "onnxruntime is not installed" in found
    assert "pip install 'm2m100-onnx[cpu]'" in found
    assert "pip install 'm2m100-onnx[gpu]'" in found


@pytest.mark.parametrize(("precision", "real"), [("fp32", "float32"), ("fp16", "float16")])
def test_packaged_gather_is_what_the_exporter_builds(precision: Precision, real: str) -> None:
    data = (resources.files("m2m100_onnx") / "model" / "data" / f"gather_{real}.onnx").read_bytes()
    assert onnx.load_from_string(data) == build_gather(precision)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    values = np.arange(24, dtype=real)
    values, rows = values.reshape(3, 2, 2, 2), np.array([2, 0, 2, 2])
    (found,) = session.run(None, {"data": values, "rows": rows})
    np.testing.assert_array_equal(found, values[rows])


def test_packages_say_that_they_are_typed() -> None:
    for package in ("m2m100_onnx", "m2m100_onnx_export"):
        assert (resources.files(package) / "py.typed").is_file()
