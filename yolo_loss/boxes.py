"""Conversions between the ways to write a box.

Boxes are the last axis, 4 numbers in any unit; leading axes are free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def xywh2xyxy(boxes_xywh: Tensor) -> Tensor:
    """Centre, width, height to two corners.

    Args:
        boxes_xywh: (..., 4) centre x, centre y, width, height.

    Returns:
        (..., 4) x1, y1, x2, y2 in the same unit and dtype.
    """
    centre, size = boxes_xywh[..., :2], boxes_xywh[..., 2:]
    half = size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy2xywh(boxes: Tensor) -> Tensor:
    """Two corners to centre, width, height.

    Args:
        boxes: (..., 4) x1, y1, x2, y2.

    Returns:
        (..., 4) centre x, centre y, width, height in the same unit and dtype.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def dist2bbox(distance: Tensor, anchor_points: Tensor) -> Tensor:
    """Distances from a point to the four sides, to two corners.

    Args:
        distance: (..., 4) left, top, right, bottom.
        anchor_points: (..., 2) x, y in the same unit, broadcast against ``distance``.

    Returns:
        (..., 4) x1, y1, x2, y2.
    """
    left_top, right_bottom = distance[..., :2], distance[..., 2:]
    return torch.cat((anchor_points - left_top, anchor_points + right_bottom), dim=-1)


def bbox2dist(anchor_points: Tensor, boxes: Tensor, reg_max: int | None = None) -> Tensor:
    """Two corners to the distances of the four sides from a point.

    Args:
        anchor_points: (..., 2) x, y, broadcast against ``boxes``.
        boxes: (..., 4) x1, y1, x2, y2 in the same unit.
        reg_max: R; when given, distances are clamped to [0, R - 1 - 0.01] so that both neighbouring bins exist.

    Returns:
        (..., 4) left, top, right, bottom.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    distance = torch.cat((anchor_points - top_left, bottom_right - anchor_points), dim=-1)
    # Both bounds are floats: an int beside a float does not survive re-tracing for export.
    return distance if reg_max is None else distance.clamp(0.0, float(reg_max) - 1.0 - 0.01)


EPS = 1e-7


class BoxGeometry(NamedTuple):
    """Boxes with what CIoU needs of each alone: corners, w * h, and the angle of their diagonal, atan(w / h)."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor
    angle: Tensor

    def apply(self, change: Callable[[Tensor], Tensor]) -> BoxGeometry:
        """The same change to each field."""
        return BoxGeometry(*(change(field) for field in self))


def box_geometry(sides: Sequence[Tensor], eps: float = EPS) -> BoxGeometry:
    """Measure boxes once that are compared many times.

    Args:
        sides: x1, y1, x2, y2, of any one shape.
        eps: Stands with the heights and not with the widths, which decides the last bits.
    """
    x1, y1, x2, y2 = sides
    width, height = x2 - x1, y2 - y1 + eps
    return BoxGeometry(x1, y1, x2, y2, width * height, torch.atan(width / height))


def ciou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> Tensor:
    """Complete IoU, element by element.

    Args:
        boxes1: (..., 4) x1, y1, x2, y2 in any unit.
        boxes2: (..., 4) in the same unit, broadcast against ``boxes1``.
        eps: Keeps every quotient finite, also for boxes without area.

    Returns:
        (...) values in (-1.5, 1]; 1 for equal boxes. Differentiable but for the trade-off weight.
    """
    return ciou_of_geometry(box_geometry(boxes1.unbind(-1), eps), box_geometry(boxes2.unbind(-1), eps), eps)


def ciou_of_geometry(one: BoxGeometry, other: BoxGeometry, eps: float = EPS) -> Tensor:
    """``ciou`` of measured boxes, broadcast against each other."""
    # Each part in a function of its own: what it needed on the way is free again for the next.
    iou = _iou(one, other, eps)
    distance = _distance(one, other, eps)
    aspect = (4 / math.pi**2) * (other.angle - one.angle).square()
    return iou - (distance + aspect * _trade_off(aspect, iou, eps))


def _iou(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    width = (torch.minimum(one.x2, other.x2) - torch.maximum(one.x1, other.x1)).clamp(min=0.0)
    height = (torch.minimum(one.y2, other.y2) - torch.maximum(one.y1, other.y1)).clamp(min=0.0)
    inter = width * height
    return inter / (one.area + other.area - inter + eps)


def _distance(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the smallest box around both."""
    distance2 = _centres2(one, other)
    return distance2 / _diagonal2(one, other, eps)


def _centres2(one: BoxGeometry, other: BoxGeometry) -> Tensor:
    x = (other.x1 + other.x2 - one.x1 - one.x2).square()
    y = (other.y1 + other.y2 - one.y1 - one.y2).square()
    return (x + y) / 4


def _diagonal2(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    width2 = (torch.maximum(one.x2, other.x2) - torch.minimum(one.x1, other.x1)).square()
    height2 = (torch.maximum(one.y2, other.y2) - torch.minimum(one.y1, other.y1)).square()
    return width2 + height2 + eps


def _trade_off(aspect: Tensor, iou: Tensor, eps: float) -> Tensor:
    """Weight of the aspect-ratio penalty. The paper lets no gradient through it."""
    return (aspect / (1 - iou + aspect + eps)).detach()
