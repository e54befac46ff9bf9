"""Exports M2M100 checkpoints to ONNX bundles for m2m100_onnx; needs torch and transformers."""

from m2m100_onnx_export.exporter import Export, export

__all__ = ["Export", "export"]
