"""Suppression of overlapping boxes for Ultralytics' validation, where torchvision's compiled build does not load.

torchvision from PyPI is built for CUDA, and does not load beside torch's build for a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def complete_torchvision() -> None:
    """Define what validation needs of torchvision where its compiled build does not fit torch's."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        define_nms()


def define_nms() -> None:
    """Define torchvision's suppression of overlapping boxes."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    torchvision.ops.nms = nms


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes to keep, (N,), the best first: each removes those after it that overlap it.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        threshold: Largest IoU of two boxes that are kept.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if kept[index]:
            rest = boxes[index + 1 :]
            sides = torch.minimum(boxes[index, 2:], rest[:, 2:]) - torch.maximum(boxes[index, :2], rest[:, :2])
            inter = sides.clamp(min=0).prod(1)
            kept[index + 1 :] &= inter / (areas[index] + areas[index + 1 :] - inter) <= threshold
    return order[kept]
