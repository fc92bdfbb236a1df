"""YOLOv8's label assignment and detection loss: export to ONNX and TensorRT, and the HTTP service.

``yolo_assigner.models`` is the detector, ``yolo_assigner.export`` writes models to files, ``yolo_assigner.serve``
serves them and has the client. The torch modules are the package ``yolo_loss``. Importing this package loads none of
them.
"""

from yolo_loss import __version__

__all__ = ["__version__"]
