"""YOLOv8's label assignment and detection loss as exportable torch modules.

Letters in shapes: **B** images, **A** anchor points of all levels together, **M** ground-truth slots per image
(padded), **C** classes, **R** bins per box side (``reg_max``), **P** pairs of a ground truth and an anchor inside it.
Boxes are xyxy in pixels unless a name says otherwise (``_grid``, ``_xywh``).

Names are imported on first use, so that a process that needs only box conversions does not load the loss.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_loss.anchors import decode, make_anchors
    from yolo_loss.assigner import PRESETS, TaskAlignedAssigner
    from yolo_loss.boxes import bbox2dist, ciou, dist2bbox, xywh2xyxy, xyxy2xywh
    from yolo_loss.collate import pad_ground_truth
    from yolo_loss.criterion import DetectionLoss, v8DetectionLoss
    from yolo_loss.end_to_end import EndToEndLoss, EndToEndResult
    from yolo_loss.losses import loss_from_sums
    from yolo_loss.structures import (
        Assignment,
        AssignmentResult,
        ClassInputs,
        ClippedSides,
        Gains,
        GroundTruth,
        LossResult,
        Predictions,
    )

__all__ = [
    "PRESETS",
    "Assignment",
    "AssignmentResult",
    "ClassInputs",
    "ClippedSides",
    "DetectionLoss",
    "EndToEndLoss",
    "EndToEndResult",
    "Gains",
    "GroundTruth",
    "LossResult",
    "Predictions",
    "TaskAlignedAssigner",
    "bbox2dist",
    "ciou",
    "decode",
    "dist2bbox",
    "loss_from_sums",
    "make_anchors",
    "pad_ground_truth",
    "v8DetectionLoss",
    "xywh2xyxy",
    "xyxy2xywh",
]

__version__ = "0.1.0"

_NAMES_OF = {
    "anchors": "decode make_anchors",
    "assigner": "PRESETS TaskAlignedAssigner",
    "boxes": "bbox2dist ciou dist2bbox xywh2xyxy xyxy2xywh",
    "collate": "pad_ground_truth",
    "criterion": "DetectionLoss v8DetectionLoss",
    "end_to_end": "EndToEndLoss EndToEndResult",
    "losses": "loss_from_sums",
    "structures": "Assignment AssignmentResult ClassInputs ClippedSides Gains GroundTruth LossResult Predictions",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
