"""What the installed onnxruntime is too old for; knows which version was the first to do what."""

from __future__ import annotations

from m2m100_onnx.bundle import FOUR_BITS, FUSED_FILES, Bundle, Precision
from m2m100_onnx.errors import DependencyError, InvalidInputError
from m2m100_onnx.sessions import CPU, ort

__all__ = ["check_fused", "check_precision", "stores_packed"]

# The first onnxruntime with four-bit tensors (1.18 knows their opset but not their type).
_FOUR_BITS_SINCE = (1, 19)
# The first that stores their packed form at multiples of 64 bytes, as its kernels take for granted:
# what 1.31 has stored they read with scales from the wrong places, and give NaN.
_PACKED_FOUR_BITS_SINCE = (1, 32)
# The first whose DecoderMaskedMultiHeadAttention is right on a CPU: 1.20 has it and gives NaN.
_FUSED_SINCE = (1, 21)


def check_precision(precision: Precision, device: str) -> None:
    """Refuses four bits where onnxruntime has no kernels for them.

    Raises:
        DependencyError: this onnxruntime is too old.
        InvalidInputError: the device is not the CPU.
    """
    if precision not in FOUR_BITS:
        return
    _require(_FOUR_BITS_SINCE, f"a bundle of precision {precision} needs")
    if device != "cpu":
        raise InvalidInputError(
            f"device: a bundle of precision {precision} runs on the CPU alone, found {device!r}; "
            "export with --precision fp16 for a GPU"
        )


def stores_packed(precision: Precision) -> bool:
    """Whether this onnxruntime can map what it has packed of a precision."""
    return precision not in FOUR_BITS or _version() >= _PACKED_FOUR_BITS_SINCE


def check_fused(bundle: Bundle, *, cpu_only: bool) -> None:
    """Refuses fused graphs where they are missing or do not run.

    Raises:
        DependencyError: this onnxruntime is too old.
        InvalidInputError: the bundle has none, or a provider beside the CPU's was asked for.
    """
    if not bundle.has_fused_graphs or not cpu_only:
        raise InvalidInputError(
            f"fused: expected a bundle with {' and '.join(FUSED_FILES)} and no provider but "
            f"{CPU}, found {bundle.directory} of precision {bundle.precision}"
            + ("" if cpu_only else " and others")
        )
    _require(_FUSED_SINCE, "fused: the graphs need")


def _require(since: tuple[int, int], what: str) -> None:
    """Refuses an onnxruntime older than major and minor version `since`."""
    if _version() < since:
        needed = ".".join(map(str, since))
        raise DependencyError(
            f"{what} onnxruntime {needed} or newer, found {ort.__version__}; "
            "run `pip install --upgrade onnxruntime`"
        )


def _version() -> tuple[int, ...]:
    return tuple(map(int, ort.__version__.split(".")[:2]))
