"""Export of the assigner and the loss to ONNX, with a contract beside each file.

Importing this package, or ``export.contract``, loads neither torch nor onnx.
"""
