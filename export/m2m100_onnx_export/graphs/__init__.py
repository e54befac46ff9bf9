"""Builds the ONNX graphs, node by node."""
