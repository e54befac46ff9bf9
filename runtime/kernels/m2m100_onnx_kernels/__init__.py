"""Operators for onnxruntime with which m2m100-onnx translates faster on CPUs.

The package is a library and its path. onnxruntime loads it; nothing here runs.
"""

from pathlib import Path

__all__ = ["OPERATORS_VERSION", "library_path"]

OPERATORS_VERSION = 1
"""The version of the operators; graphs with newer ones are refused by name."""


def library_path() -> Path:
    """Returns the path of the library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        ImportError: the package was built without its library.
    """
    found = sorted(Path(__file__).parent.glob("libm2m100_onnx_kernels.*"))
    if not found:
        raise ImportError(f"expected libm2m100_onnx_kernels in {Path(__file__).parent}, found none")
    return found[0]
