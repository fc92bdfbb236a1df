"""Ground truths of one image that cover the same place."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.execution.chunks import runs_unchunked
from yolo_loss.explain.reasons import DUPLICATE_IOU

# Pairs of ground truths that are compared at once, where a processor's cache holds them.
PAIRS_PER_CHUNK = 2**17


def find_duplicates(boxes: Tensor, valid: Tensor) -> Tensor:
    """Find the other box of the same image with the largest IoU, if that is above ``DUPLICATE_IOU``.

    Args:
        boxes: (B, M, 4) pixel xyxy, M >= 1.
        valid: (B, M) bool; only valid boxes have duplicates and are some.

    Returns:
        (B, M) int64 slots, the smallest among equal IoUs; -1: none.
    """
    images, slots, _ = boxes.shape
    rows, per_chunk = images * slots, max(PAIRS_PER_CHUNK // slots, 1)
    index = torch.arange(rows, device=boxes.device)
    chunks = [index] if runs_unchunked(boxes.device) else index.split(per_chunk)
    parts = [_duplicates_of_rows(chunk, boxes, valid) for chunk in chunks]
    return torch.cat(parts).view(images, slots) if parts else index.view(images, slots)


def _duplicates_of_rows(rows: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """Duplicates of some of the slots b * M + m, (N,)."""
    slots = boxes.shape[1]
    image = torch.div(rows, slots, rounding_mode="floor")
    one, one_valid = boxes.flatten(0, 1).index_select(0, rows).unsqueeze(1), valid.flatten().index_select(0, rows)
    ious = plain_iou(one, boxes.index_select(0, image))  # (N, M)
    others = torch.arange(slots, device=rows.device) != (rows - image * slots).unsqueeze(1)
    ious = torch.where(one_valid.unsqueeze(1) & valid.index_select(0, image) & others, ious, 0.0)
    best, slot = ious.amax(dim=1), ious.argmax(dim=1)
    return torch.where(best > DUPLICATE_IOU, slot, -1)


def plain_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) xyxy, broadcast; 0 where the union has no area."""
    low = torch.maximum(one[..., :2], other[..., :2])
    side = (torch.minimum(one[..., 2:], other[..., 2:]) - low).clamp(min=0.0)
    inter = side[..., 0] * side[..., 1]
    union = _area(one) + _area(other) - inter
    return torch.where(union > 0, inter / union, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
