"""What a detector found: non-maximum suppression, and matching with the true boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.boxes import xywh2xyxy


class Found(NamedTuple):
    """Counts for one picture; recall is hits / trees, precision is hits / reported.

    Attributes:
        trees: True boxes.
        reported: Boxes that the detector reports.
        hits: Reported boxes with a true box of their own.
    """

    trees: int
    reported: int
    hits: int

    @property
    def recall(self) -> float:
        """Share of the true boxes that were found; 0 if there are none."""
        return self.hits / max(self.trees, 1)

    @property
    def precision(self) -> float:
        """Share of the reported boxes that are right; 0 if there are none."""
        return self.hits / max(self.reported, 1)


def iou_matrix(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Overlaps of all pairs: (N, 4) and (K, 4) xyxy to (N, K); 0 where both boxes are empty."""
    corner_low = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])  # (N, K, 2)
    corner_high = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    inter = (corner_high - corner_low).clamp(min=0.0).prod(dim=-1)  # (N, K)
    area1, area2 = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) for boxes in (boxes1, boxes2))
    union = area1[:, None] + area2 - inter
    return torch.where(union > 0, inter / union, 0.0)


def non_max_suppression(boxes: Tensor, scores: Tensor, iou: float = 0.5) -> Tensor:
    """Of boxes that overlap by more than ``iou``, keep the one with the highest score.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        iou: Largest overlap that two kept boxes may have.

    Returns:
        Indices (K,) of the kept boxes, highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    overlapping = iou_matrix(boxes[order], boxes[order]) > iou
    better = overlapping.tril(diagonal=-1)  # (N, N): column is better than row and covers it
    keep = torch.ones_like(scores, dtype=torch.bool)
    # A box is dropped by a kept one only. From the best down, each round settles at least one more box for good,
    # so that the greedy answer is reached when nothing changes; a few rounds do.
    while not torch.equal(keep, updated := ~(better & keep).any(dim=1)):
        keep = updated
    return order[keep]


def reported_boxes(predictions: Tensor, confidence: float, iou: float = 0.5) -> Tensor:
    """Boxes of one picture that a detector of one class reports.

    Args:
        predictions: (5, A), centre x, centre y, width, height in pixels, and the probability.
        confidence: Least probability.
        iou: Of the suppression.

    Returns:
        (K, 4) xyxy pixels, most probable first.
    """
    sure = predictions[:, predictions[4] >= confidence]
    boxes = xywh2xyxy(sure[:4].T)
    return boxes[non_max_suppression(boxes, sure[4], iou)]


def count_found(reported: Tensor, trees: Tensor, iou: float = 0.5) -> Found:
    """Give each reported box, the most probable first, the free true box that it overlaps most.

    Args:
        reported: (K, 4) xyxy, most probable first.
        trees: (T, 4) xyxy, true boxes in the same unit.
        iou: Least overlap of a hit.
    """
    overlaps = iou_matrix(reported, trees)
    hits = 0
    for index in range(len(reported) if len(trees) else 0):
        best, tree = overlaps[index].max(dim=0)
        if best >= iou:
            hits += 1
            overlaps[:, tree] = 0.0
    return Found(len(trees), len(reported), hits)
