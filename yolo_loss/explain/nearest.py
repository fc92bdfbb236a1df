"""The anchor nearest to each box, and how far a box would have to be enlarged to contain one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.anchor_grid import RegularRuns, cached_anchor_grid

# Pixels beyond the exact side, so that rounding of coordinates does not decide.
MARGIN = 0.01


class Nearest(NamedTuple):
    """For each of G boxes.

    Attributes:
        distance: (G,) pixels from the box to the nearest anchor's centre; 0 where one lies in it.
        helping_side: (G,) the smallest whole number of pixels that, as ``min_box_side``, gives it a candidate; 0 where
            it has one without.
    """

    distance: Tensor
    helping_side: Tensor


class _Axis(NamedTuple):
    """Along one axis, for each box and block: distance of the nearest position, and the side that reaches it."""

    distance: Tensor
    side: Tensor


def find_nearest(points: Tensor, boxes: Tensor, eps: float) -> Nearest:
    """Find the nearest anchors from the anchors' regular structure, in memory G times the number of blocks.

    Args:
        points: (A, 2) pixels.
        boxes: (G, 4) pixel xyxy.
        eps: An anchor is inside when its distance from every side is larger.
    """
    grid = cached_anchor_grid(points)
    # In a block all rows have the same points, and each axis is regular: the nearest point is nearest along both.
    rows = grid.rows.select(grid.blocks.start)
    x = _nearest_along(grid.x, rows, boxes[:, 0:1], boxes[:, 2:3], eps)
    y = _nearest_along(grid.y, grid.blocks, boxes[:, 1:2], boxes[:, 3:4], eps)
    distance = (x.distance.square() + y.distance.square()).amin(dim=1).sqrt()
    return Nearest(distance, torch.maximum(x.side, y.side).amin(dim=1).ceil())


def _nearest_along(positions: Tensor, runs: RegularRuns, low: Tensor, high: Tensor, eps: float) -> _Axis:
    """Along one axis, (G, K) for G boxes and K runs.

    Args:
        positions: Of all members of all runs.
        runs: (K,) each.
        low: (G, 1) lower sides.
        high: (G, 1) higher sides.
        eps: As above.
    """
    centre = (low + high) / 2
    member = ((centre - runs.origin) / runs.step).round()
    member = torch.where(member > 0, member, 0.0).minimum(runs.length - 1).long()
    position = positions.index_select(0, (runs.start + member).flatten()).view(member.shape)
    outside = torch.maximum(low - position, position - high).clamp(min=0.0)
    inside = torch.minimum(position - low, high - position) > eps
    return _Axis(outside, torch.where(inside, 0.0, 2 * ((position - centre).abs() + eps) + MARGIN))
