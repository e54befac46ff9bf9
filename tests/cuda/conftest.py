"""Leaves these tests out where onnxruntime has no CUDA; `scripts/test-cuda` runs them."""

from __future__ import annotations

from m2m100_onnx.model.support import CUDA, ort

collect_ignore_glob = [] if CUDA in ort.get_available_providers() else ["test_*.py"]
