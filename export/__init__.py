"""Export of the assigner and the loss to ONNX, with a contract beside each file.

Importing this package, or ``yolo_assigner.export.contract``, loads neither torch nor onnx.
"""

import os

# ONNX Runtime's Linux wheels report usage unless told otherwise before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
