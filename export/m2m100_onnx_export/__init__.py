"""Export M2M100 checkpoints to ONNX bundles that m2m100_onnx runs; needs torch and transformers."""

from m2m100_onnx_export.exporter import Export, export

__all__ = ["Export", "export"]
