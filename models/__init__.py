"""The YOLOv8 detector, whose head's maps the loss takes."""

from yolo_assigner.models.checkpoint import load_checkpoint, read_state_dict
from yolo_assigner.models.head import Detect, Detections
from yolo_assigner.models.yolov8 import SCALES, DetectionModel, DetectorConfig

__all__ = [
    "SCALES",
    "Detect",
    "DetectionModel",
    "Detections",
    "DetectorConfig",
    "load_checkpoint",
    "read_state_dict",
]
