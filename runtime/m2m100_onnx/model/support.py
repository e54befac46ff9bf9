"""What the installed onnxruntime and this machine support: versions, devices, processors.

Knows which version of onnxruntime was the first to do what. The first file that imports
onnxruntime.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

from m2m100_onnx.bundle.folder import BundleFolder
from m2m100_onnx.bundle.graphs import FOUR_BITS, Precision
from m2m100_onnx.errors import DependencyError, InvalidInputError
from m2m100_onnx.process import raised_by_signal_handler

# Since 1.29 onnxruntime keeps a device id in the user's cache folder and sends events to its maker,
# unless this is set before the import. The thread that sends them makes forked processes hang at
# their end. A program that wants telemetry sets the variable itself.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise DependencyError(
        "onnxruntime is not installed; run `pip install 'm2m100-onnx[cpu]'`, "
        "or `pip install 'm2m100-onnx[gpu]'` on a machine with CUDA"
    ) from error

__all__ = [
    "CPU",
    "CUDA",
    "Provider",
    "adds_in_16_bits",
    "check_fused",
    "check_precision",
    "check_version",
    "choose_providers",
    "onnxruntime_version",
    "ort",
    "parse_device",
    "prepare_cuda",
    "raised_by_onnxruntime",
    "stores_packed",
]

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_ERRORS_MODULE = "onnxruntime.capi.onnxruntime_pybind11_state"
_BUILT_IN = (RuntimeError, ValueError, UnicodeDecodeError, IndexError, OverflowError)
_ERROR = 3
"""Of onnxruntime's severities the one of errors."""
_CPUINFO = Path("/proc/cpuinfo")
# The first whose DecoderMaskedMultiHeadAttention is right on a CPU: with that of 1.20 the fused
# graphs give other tokens.
_OLDEST = (1, 21)
# onnxruntime's attention operators for the CPU take float32 alone; those for CUDA float16 too, and
# CUDA has none that multiply quantized matrices row by row.
_FUSED_PRECISIONS: dict[str | None, tuple[Precision, ...]] = {
    "cpu": ("fp32", "int8", *FOUR_BITS),
    "cuda": ("fp32", "fp16"),
}
# Those for which CUDA's DecoderMaskedMultiHeadAttention is compiled.
_CUDA_HEAD_SIZES = (32, 64, 128)
# The first that stores packed four-bit weights at multiples of 64 bytes, as its kernels require:
# they read what 1.31 stores with scales from the wrong places, and return NaN.
_PACKED_FOUR_BITS_SINCE = (1, 32)


def onnxruntime_version() -> str:
    """Returns the version of the onnxruntime that is imported."""
    return str(ort.__version__)


def raised_by_onnxruntime(error: BaseException) -> bool:
    """Says whether an exception is onnxruntime's own.

    Any other, such as one that a signal handler raises during a run, must pass through untouched.
    """
    if type(error).__module__ == _ERRORS_MODULE:
        return True
    # C++ exceptions without a type of their own come as Python's, out of onnxruntime's own lines.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return type(error) in _BUILT_IN and module.partition(".")[0] == "onnxruntime"


def check_version() -> None:
    """Refuses an onnxruntime that is too old.

    Raises:
        DependencyError: it is older than 1.21.
    """
    if _version() < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise DependencyError(
            f"expected onnxruntime {needed} or newer, found {ort.__version__}; "
            "run `pip install --upgrade onnxruntime`"
        )


def check_precision(precision: Precision, device: str) -> None:
    """Refuses four bits where onnxruntime has no kernels for them.

    Raises:
        InvalidInputError: the device is not the CPU.
    """
    if precision in FOUR_BITS and device != "cpu":
        raise InvalidInputError(
            f"device: a bundle of precision {precision} runs on the CPU alone, found {device!r}; "
            "export with --precision fp16 for a GPU"
        )


def stores_packed(precision: Precision) -> bool:
    """Says whether onnxruntime can map packed weights of a precision from a file."""
    return precision not in FOUR_BITS or _version() >= _PACKED_FOUR_BITS_SINCE


def check_fused(bundle: BundleFolder, device: str | None) -> None:
    """Refuses fused graphs where the bundle has none or onnxruntime does not run them.

    Args:
        bundle: the bundle.
        device: `cpu`, `cuda`, or None where other providers are in use.

    Raises:
        InvalidInputError: the graphs are not there, or do not run on the device.
    """
    found = f"found {bundle.directory} of precision {bundle.precision}"
    if not bundle.has_fused_graphs or device not in _FUSED_PRECISIONS:
        raise InvalidInputError(
            f"fused: expected a bundle with {' and '.join(bundle.fused_files)} and no provider but "
            f"{CPU} and {CUDA}, {found}" + ("" if device else " and other providers")
        )
    if bundle.precision not in _FUSED_PRECISIONS[device]:
        raise InvalidInputError(
            f"fused: expected precision {' or '.join(_FUSED_PRECISIONS[device])} for graphs that "
            f"run on {device}, {found}"
        )
    if device == "cuda" and bundle.head_size not in _CUDA_HEAD_SIZES:
        raise InvalidInputError(
            "fused: expected attention heads of "
            f"{' or '.join(map(str, _CUDA_HEAD_SIZES))} numbers on CUDA, {found}, whose heads have "
            f"{bundle.head_size}"
        )


def _version() -> tuple[int, ...]:
    return tuple(map(int, ort.__version__.split(".")[:2]))


def parse_device(device: str) -> tuple[str, int]:
    """Returns `cpu` or `cuda`, and the number of the device.

    Raises:
        InvalidInputError: `device` is not cpu, cuda, cuda:N or auto.
    """
    if device == "auto":
        device = "cuda" if CUDA in ort.get_available_providers() else "cpu"
    kind, colon, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise InvalidInputError(f"device: expected cpu, cuda, cuda:N or auto, found {device!r}")
    return kind, int(number or 0)


def choose_providers(
    device: str, device_id: int, given: Sequence[Provider] | None
) -> list[Provider]:
    """Returns the execution providers: those given, else the usual ones of the device.

    Raises:
        InvalidInputError: `given` is no list of providers.
        DependencyError: onnxruntime lacks one of them.
    """
    available = ort.get_available_providers()
    listed = isinstance(given, (list, tuple, NoneType))
    if not listed or not all(map(_is_provider, given or ())):
        raise InvalidInputError(
            f"providers: expected a list of names, or of names with a mapping each, found {given!r}"
        )
    chosen: list[Provider] = list(given) if given is not None else [CPU]
    if given is None and device == "cuda":
        # Products of float32 are rounded to 10 bits by default (TF32), and a few translations in a
        # hundred differ from those of a CPU.
        chosen = [(CUDA, {"device_id": str(device_id), "use_tf32": "0"}), CPU]
    for entry in chosen:
        name = entry if isinstance(entry, str) else entry[0]
        if name not in available:
            hint = "; run `pip install 'm2m100-onnx[gpu]'`" if name == CUDA else ""
            raise DependencyError(
                f"this onnxruntime has no {name} (it has {', '.join(available)}){hint}"
            )
    return chosen


@functools.cache
def prepare_cuda() -> None:
    """Loads the CUDA and cuDNN libraries that are installed as Python packages, if there are any.

    onnxruntime itself looks for them only where the system's libraries lie. What it cannot load it
    prints to stdout, which is the program's; opening a session raises then.
    """
    # Every session tells stderr that CUDA is no plugin.
    ort.set_default_logger_severity(_ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _is_provider(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        return False
    return isinstance(entry[0], str) and isinstance(entry[1], Mapping)


def adds_in_16_bits() -> bool:
    """Says whether the processor may lack VNNI: an x86 that does not list it.

    Exactness has priority over speed where nothing describes the processor as Linux does.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        with _CPUINFO.open() as lines:  # All cores are alike, and many of them make it long.
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        return True
    return "vnni" not in flags
