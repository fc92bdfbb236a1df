"""Complete IoU of pairs of boxes (Zheng et al., arXiv 1911.08287)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _trade_off(aspect: Tensor, iou: Tensor, eps: float) -> Tensor:
    """Weight of the aspect-ratio penalty. The paper lets no gradient through it."""
    return (aspect / (1 - iou + aspect + eps)).detach()


def ciou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU, element by element.

    Where each ``eps`` stands decides the last bits: the heights carry one, the widths do not.

    Args:
        boxes1: (..., 4) x1, y1, x2, y2 in any unit.
        boxes2: (..., 4) in the same unit, broadcast against ``boxes1``.
        eps: Keeps every quotient finite, also for boxes without area.

    Returns:
        (...) values in (-1.5, 1]; 1 for equal boxes. Differentiable but for the trade-off weight.
    """
    return ciou_of_sides(boxes1.unbind(-1), boxes2.unbind(-1), eps)


def ciou_of_sides(sides1: Sequence[Tensor], sides2: Sequence[Tensor], eps: float = 1e-7) -> Tensor:
    """``ciou`` of boxes that lie as four tensors x1, y1, x2, y2, broadcast against each other."""
    x11, y11, x12, y12 = sides1
    x21, y21, x22, y22 = sides2
    w1, h1 = x12 - x11, y12 - y11 + eps
    w2, h2 = x22 - x21, y22 - y21 + eps

    inter_w = (torch.minimum(x12, x22) - torch.maximum(x11, x21)).clamp(min=0.0)
    inter_h = (torch.minimum(y12, y22) - torch.maximum(y11, y21)).clamp(min=0.0)
    inter = inter_w * inter_h
    union = w1 * h1 + w2 * h2 - inter + eps
    iou = inter / union

    hull_w = torch.maximum(x12, x22) - torch.minimum(x11, x21)
    hull_h = torch.maximum(y12, y22) - torch.minimum(y11, y21)
    diagonal2 = hull_w.square() + hull_h.square() + eps
    distance2 = ((x21 + x22 - x11 - x12).square() + (y21 + y22 - y11 - y12).square()) / 4

    aspect = (4 / math.pi**2) * (torch.atan(w2 / h2) - torch.atan(w1 / h1)).square()
    return iou - (distance2 / diagonal2 + aspect * _trade_off(aspect, iou, eps))
