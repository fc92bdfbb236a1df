"""Hyper-parameters of the assignment, and what every formulation does with them in the same way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AssignerParams(NamedTuple):
    """Hyper-parameters of the assignment.

    Attributes:
        topk: Candidates k per ground truth.
        alpha: Exponent of the class score.
        beta: Exponent of the overlap.
        eps: Margin inside a box, and what keeps the soft score finite.
        min_box_side: Boxes with a shorter side count as this many pixels when candidates are sought; None: as they are.
        topk2: Anchors that each ground truth keeps in the end; None: all it won.
    """

    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    eps: float = 1e-9
    min_box_side: float | None = None
    topk2: int | None = None


def enlarge(boxes: Tensor, min_side: float) -> Tensor:
    """Sides below ``min_side`` grow to it about the box's centre.

    Args:
        boxes: (..., 4) pixel xyxy.
        min_side: Pixels.

    Returns:
        (..., 4) pixel xyxy; boxes that are large enough keep their bits.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    small = (bottom_right - top_left) < min_side
    centre = (top_left + bottom_right) / 2
    half = min_side / 2
    return torch.cat(
        (torch.where(small, centre - half, top_left), torch.where(small, centre + half, bottom_right)), dim=-1
    )
