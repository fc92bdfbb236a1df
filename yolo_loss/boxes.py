"""Conversions between box formats, and complete IoU.

Boxes are the last axis, 4 coordinates in any unit; leading axes are free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.execution.buffers import constants

EPS = 1e-7


def xywh2xyxy(boxes_xywh: Tensor) -> Tensor:
    """Convert centre, width, height to two corners.

    Args:
        boxes_xywh: (..., 4) centre x, centre y, width, height.

    Returns:
        (..., 4) x1, y1, x2, y2 in the same unit and dtype.
    """
    centre, size = boxes_xywh[..., :2], boxes_xywh[..., 2:]
    half = size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy2xywh(boxes: Tensor) -> Tensor:
    """Convert two corners to centre, width, height.

    Args:
        boxes: (..., 4) x1, y1, x2, y2.

    Returns:
        (..., 4) centre x, centre y, width, height in the same unit and dtype.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def dist2bbox(distance: Tensor, anchor_points: Tensor) -> Tensor:
    """Convert distances of the four sides from a point to two corners.

    Args:
        distance: (..., 4) left, top, right, bottom.
        anchor_points: (..., 2) x, y in the same unit, broadcast against ``distance``.

    Returns:
        (..., 4) x1, y1, x2, y2.
    """
    left_top, right_bottom = distance[..., :2], distance[..., 2:]
    return torch.cat((anchor_points - left_top, anchor_points + right_bottom), dim=-1)


def bbox2dist(anchor_points: Tensor, boxes: Tensor, reg_max: int | None = None) -> Tensor:
    """Convert two corners to distances of the four sides from a point.

    Args:
        anchor_points: (..., 2) x, y, broadcast against ``boxes``.
        boxes: (..., 4) x1, y1, x2, y2 in the same unit.
        reg_max: R; if given, distances are clamped to [0, R - 1 - 0.01] so that both neighbouring bins exist.

    Returns:
        (..., 4) left, top, right, bottom.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    distance = torch.cat((anchor_points - top_left, bottom_right - anchor_points), dim=-1)
    # Both bounds are floats: an int beside a float is lost when the graph is traced again for export.
    return distance if reg_max is None else distance.clamp(0.0, float(reg_max) - 1.0 - 0.01)


class BoxGeometry(NamedTuple):
    """The parts of CIoU that depend on one box alone: its sides, area w * h, and the diagonal's angle atan(w / h)."""

    x1: Tensor
    y1: Tensor
    x2: Tensor
    y2: Tensor
    area: Tensor
    angle: Tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> BoxGeometry:
        """Apply a function to every field."""
        return BoxGeometry(*(function(field) for field in self))


def box_geometry(sides: Sequence[Tensor], eps: float = EPS) -> BoxGeometry:
    """Compute the geometry of boxes once, to compare them many times.

    Args:
        sides: x1, y1, x2, y2, of any one shape.
        eps: Added to the heights and not to the widths, which decides the last bits.
    """
    x1, y1, x2, y2 = sides
    width, height = x2 - x1, y2 - y1 + eps
    return BoxGeometry(x1, y1, x2, y2, width * height, torch.atan(width / height))


def ciou(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> Tensor:
    """Complete IoU, element by element (Zheng et al., arXiv 1911.08287).

    Args:
        boxes1: (..., 4) x1, y1, x2, y2 in any unit.
        boxes2: (..., 4) in the same unit, broadcast against ``boxes1``.
        eps: Keeps every quotient finite, also for boxes without area.

    Returns:
        (...) values in (-1.5, 1]; 1 for equal boxes. Differentiable but for the trade-off weight.
    """
    return ciou_of_geometry(box_geometry(boxes1.unbind(-1), eps), box_geometry(boxes2.unbind(-1), eps), eps)


def ciou_of_geometry(one: BoxGeometry, other: BoxGeometry, eps: float = EPS) -> Tensor:
    """``ciou`` from the geometry of both boxes, broadcast against each other."""
    # Each part has its own function, so that its temporaries are freed before the next part.
    iou = _iou(one, other, eps)
    distance = _centre_distance(one, other, eps)
    aspect = (4 / math.pi**2) * (other.angle - one.angle).square()
    return iou - (distance + aspect * trade_off(aspect, iou, eps))


def _iou(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    width = (torch.minimum(one.x2, other.x2) - torch.maximum(one.x1, other.x1)).clamp(min=0.0)
    height = (torch.minimum(one.y2, other.y2) - torch.maximum(one.y1, other.y1)).clamp(min=0.0)
    inter = width * height
    return inter / (one.area + other.area - inter + eps)


def _centre_distance(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the smallest enclosing box."""
    distance2 = _centre_distance2(one, other)
    return distance2 / _diagonal2(one, other, eps)


def _centre_distance2(one: BoxGeometry, other: BoxGeometry) -> Tensor:
    x = (other.x1 + other.x2 - one.x1 - one.x2).square()
    y = (other.y1 + other.y2 - one.y1 - one.y2).square()
    return (x + y) / 4


def _diagonal2(one: BoxGeometry, other: BoxGeometry, eps: float) -> Tensor:
    width2 = (torch.maximum(one.x2, other.x2) - torch.minimum(one.x1, other.x1)).square()
    height2 = (torch.maximum(one.y2, other.y2) - torch.minimum(one.y1, other.y1)).square()
    return width2 + height2 + eps


def ciou_with_gradient(boxes1: Tensor, boxes2: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """``ciou`` of N pairs with its derivative by the first boxes, in closed form: a third of autograd's operations.

    Args:
        boxes1: (N, 4) x1, y1, x2, y2 in any unit.
        boxes2: (N, 4) in the same unit.
        eps: As there.

    Returns:
        (N,) equal to ``ciou`` to the bit, and (N, 4).
    """
    # Corner by corner, so that one operation computes x and y of all pairs.
    corners = ((sides[:2], sides[2:]) for sides in (boxes1.t().contiguous(), boxes2.t().contiguous()))
    (low1, high1), (low2, high2) = corners  # (2, N)
    margin = constants((0.0, eps), boxes1).unsqueeze(1)
    size1, size2 = high1 - low1 + margin, high2 - low2 + margin
    reach = torch.minimum(high1, high2) - torch.maximum(low1, low2)
    overlap = reach.clamp(min=0.0)
    inter = overlap[0] * overlap[1]  # (N,)
    union = size1[0] * size1[1] + size2[0] * size2[1] - inter + eps
    iou = inter / union
    outer = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    diagonal2 = outer.square().sum(dim=0) + eps
    shift = low2 + high2 - low1 - high1
    distance = shift.square().sum(dim=0) / 4 / diagonal2
    turn = torch.atan(size2[0] / size2[1]) - torch.atan(size1[0] / size1[1])
    aspect = (4 / math.pi**2) * turn.square()
    weight = trade_off(aspect, iou, eps)

    by_reach = overlap.flip(0) * (reach >= 0) * ((1 + iou) / union)
    by_outer = outer * (2 * distance / diagonal2)
    by_turn = (8 / math.pi**2) * weight * turn / size1.square().sum(dim=0)
    by_area = iou / union
    by_size = size1.flip(0) * torch.stack((by_turn - by_area, -by_turn - by_area))
    by_shift = shift / (2 * diagonal2)
    # A side inside the other box bounds the overlap, one outside it the enclosing box, and an equal one half of each.
    by_low = torch.lerp(by_outer, by_reach, (torch.sign(low1 - low2) + 1) / 2) + by_size
    by_high = torch.lerp(by_outer, by_reach, (torch.sign(high2 - high1) + 1) / 2) + by_size
    return iou - (distance + aspect * weight), torch.cat((by_shift - by_low, by_shift + by_high)).t()


def trade_off(aspect: Tensor, iou: Tensor, eps: float) -> Tensor:
    """Weight of the aspect-ratio penalty. The paper lets no gradient through it."""
    return (aspect / (1 - iou + aspect + eps)).detach()
