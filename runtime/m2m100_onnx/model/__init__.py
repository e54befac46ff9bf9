"""From token ids to scores. The only room that imports onnxruntime."""
