"""Operators for onnxruntime with which m2m100-onnx translates faster on CPUs.

The package is a library and its path. onnxruntime loads it; nothing here runs.
"""

from pathlib import Path

__all__ = ["OPERATORS_VERSION", "library_path"]
__version__ = "0.1.0"

OPERATORS_VERSION = 1
"""The version of the operators; graphs with newer ones are refused by name."""


def library_path() -> Path:
    """Returns the path of the library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        ImportError: the package was installed without its library.
    """
    folder = Path(__file__).parent
    found = sorted(folder.glob("libm2m100_onnx_kernels.*"))
    if not found:
        raise ImportError(
            f"expected libm2m100_onnx_kernels.so in {folder}, found none: the library is compiled "
            "when a wheel is built; run `pip install --force-reinstall m2m100-onnx-kernels`"
        )
    return found[0]
