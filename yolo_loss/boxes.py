"""Conversions between the ways to write a box.

Boxes are the last axis, 4 numbers in any unit; leading axes are free.
"""

from __future__ import annotations

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
