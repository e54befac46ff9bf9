"""The library of this project's own operators: where it lies, and whether it can run a bundle.

The package `m2m100-onnx-kernels` has it, and is optional. Refuses to know graphs and tensors.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
from pathlib import Path

from m2m100_onnx.bundle.folder import BundleFolder
from m2m100_onnx.bundle.graphs import OPERATORS_VERSION
from m2m100_onnx.errors import DependencyError, InvalidInputError, M2M100Error
from m2m100_onnx.model.support import ort, raised_by_onnxruntime

__all__ = ["are_fast", "check_native", "library"]

_PACKAGE = "m2m100_onnx_kernels"
_LOGGER = logging.getLogger("m2m100_onnx")


@functools.cache
def library() -> Path:
    """Returns the path of the library.

    Raises:
        DependencyError: the package is not installed, onnxruntime cannot load its library, or it
            is older than the operators that this runtime knows.
    """
    try:
        package = importlib.import_module(_PACKAGE)
        found: int = package.OPERATORS_VERSION
        path = Path(package.library_path())
    except (ImportError, OSError) as error:
        raise DependencyError(
            "kernels: expected the package m2m100-onnx-kernels; run `pip install "
            f"'m2m100-onnx[kernels]'` ({error})"
        ) from None
    if found < OPERATORS_VERSION:
        raise DependencyError(
            f"kernels: expected operators of version {OPERATORS_VERSION} or newer, found version "
            f"{found}; run `pip install --upgrade m2m100-onnx-kernels`"
        )
    try:
        ort.SessionOptions().register_custom_ops_library(os.fspath(path))
    except Exception as error:
        if not raised_by_onnxruntime(error):
            raise
        refusal = DependencyError(
            f"kernels: onnxruntime {ort.__version__} cannot load {path}: {error}"
        )
        # Whoever has installed the package expects it to run, and may have asked for nothing.
        _LOGGER.warning("%s", refusal)
        raise refusal from None
    return path


def are_fast() -> bool:
    """Says whether the operators are faster here than onnxruntime's; `library` has found them.

    Plain C++ is not. It runs where it is asked for.
    """
    if os.environ.get("M2M100_KERNELS"):
        return True
    name = ctypes.CDLL(os.fspath(library())).m2m100_kernels_name
    name.restype = ctypes.c_char_p
    return bool(name() != b"plain")


def check_native(bundle: BundleFolder, *, cpu_only: bool) -> M2M100Error | None:
    """Returns why a bundle's native graphs cannot run here; None where they can."""
    if not bundle.has_native_graphs or not cpu_only:
        return InvalidInputError(
            "kernels: expected a bundle of precision int8, int4 or int4-int8 with "
            f"{' and '.join(bundle.native_files) or 'native graphs'} and no provider but the "
            f"CPU's, found {bundle.directory} of precision {bundle.precision}"
            + ("" if cpu_only else " and other providers")
        )
    try:
        library()
    except DependencyError as error:
        return error
    return None
