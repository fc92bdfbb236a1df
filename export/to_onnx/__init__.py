"""From plain numbers to an ONNX file with its contract."""
