"""Export of the assigner, the loss and a detector to ONNX."""
