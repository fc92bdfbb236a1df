"""The YOLOv8 detector; the loss takes the raw maps of its head."""

from yolo_assigner.models.checkpoint import load_checkpoint, read_state_dict
from yolo_assigner.models.head import Detect, Detections, EndToEndDetections
from yolo_assigner.models.yolov8 import PYRAMIDS, SCALES, DetectionModel, DetectorConfig

__all__ = [
    "PYRAMIDS",
    "SCALES",
    "Detect",
    "DetectionModel",
    "Detections",
    "DetectorConfig",
    "EndToEndDetections",
    "load_checkpoint",
    "read_state_dict",
]
