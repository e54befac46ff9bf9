"""Compares what an opened graph takes and gives with what the runtime binds.

Knows onnxruntime's names of types; opens and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2m100_onnx.bundle.graphs import Signature
from m2m100_onnx.errors import BundleError
from m2m100_onnx.model.support import ort

__all__ = ["check_signature"]

_ORT_TYPE = {
    "bool": "tensor(bool)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
}


def check_signature(path: Path, session: ort.InferenceSession, expected: Signature) -> None:
    """Refuses a graph whose inputs or outputs are not those that the runtime binds.

    Raises:
        BundleError: names the graph, what was expected and what was found.
    """
    for kind, specs, found in (
        ("inputs", expected.inputs, session.get_inputs()),
        ("outputs", expected.outputs, session.get_outputs()),
    ):
        want = {spec.name: (_ORT_TYPE[spec.dtype], spec.shape) for spec in specs}
        try:
            have = {value.name: (value.type, tuple(value.shape)) for value in found}
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: {kind}: expected names in UTF-8: {error}") from None
        missing = [n for n in want if n not in have]
        extra = [n for n in have if n not in want]
        other = [
            f"{n} {have[n]} for {want[n]}"
            for n in want
            if n in have and not _takes(*have[n], *want[n])
        ]
        if not (missing or extra or other):
            continue
        details = [
            f"{label} {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for label, names in (
                ("missing", missing),
                ("unexpected", extra),
                ("of another type or shape:", other),
            )
            if names
        ]
        raise BundleError(
            f"{path}: expected {len(want)} {kind} as config.json implies, found {len(have)}: "
            + "; ".join(details)
        )


def _takes(
    kind: str, axes: Sequence[object], wanted_kind: str, wanted_axes: Sequence[object]
) -> bool:
    """Says whether a tensor of a graph fits; an axis that the graph fixes must have that length."""
    return (
        kind == wanted_kind
        and len(axes) == len(wanted_axes)
        and all(not isinstance(a, int) or a == b for a, b in zip(axes, wanted_axes, strict=True))
    )
