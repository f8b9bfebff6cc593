"""From ONNX to graph; the only place that reads ONNX."""
