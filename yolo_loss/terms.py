"""The three terms of the loss, before any sum, and the way from sums to the loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from yolo_loss.boxes import bbox2dist
from yolo_loss.overlap import ciou
from yolo_loss.results import Gains

# Above this softplus(x) is x; at 40 the two differ by less than float64 can tell.
_SOFTPLUS_THRESHOLD = 40.0


def box_term(pred_bboxes: Tensor, target_bboxes: Tensor) -> Tensor:
    """1 - CIoU.

    Args:
        pred_bboxes: (..., 4) xyxy, grid units.
        target_bboxes: (..., 4) xyxy, grid units.

    Returns:
        (...).
    """
    return 1 - ciou(pred_bboxes, target_bboxes)


def dfl_term(distri: Tensor, target_bboxes: Tensor, anchor_points: Tensor) -> Tensor:
    """Distribution focal loss (arXiv 2006.04388), the mean over the four sides.

    The target is a two-hot vector, 1 - |d - r| at the two bins r beside d, so that its gradient needs no scatter.

    Args:
        distri: (..., 4, R) logits.
        target_bboxes: (..., 4) xyxy, grid units.
        anchor_points: (..., 2) grid units, broadcast.

    Returns:
        (...).
    """
    reg_max = distri.shape[-1]
    distance = bbox2dist(anchor_points, target_bboxes, reg_max).unsqueeze(-1)  # (..., 4, 1)
    bins = torch.arange(reg_max, dtype=distri.dtype, device=distri.device)
    two_hot = (1.0 - (distance - bins).abs()).clamp(min=0.0)  # (..., 4, R)
    return -(two_hot * distri.log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)


def class_term(logits: Tensor, own_logits: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy against one-hot(label) times weight, summed without the dense target.

    Args:
        logits: (B, C, A).
        own_logits: (B, A) logit of the assigned class; any value on background.
        weights: (B, A) soft scores, 0 on background.

    Returns:
        (B,) sum over anchors and classes.
    """
    return _softplus(logits).sum(dim=(1, 2)) - (own_logits * weights).sum(dim=1)


def varifocal_term(logits: Tensor, own_logits: Tensor, weights: Tensor, fg_mask: Tensor) -> Tensor:
    """Varifocal loss (Zhang et al., arXiv 2008.13367) with the same targets.

    The weight of the cross-entropy is the soft score where the target is, 0.75 p^2 elsewhere.

    Args:
        logits: (B, C, A).
        own_logits: (B, A) logit of the assigned class.
        weights: (B, A) soft scores.
        fg_mask: (B, A) bool.

    Returns:
        (B,) sum over anchors and classes.
    """
    negative = _negative_focal(logits).sum(dim=(1, 2))
    positive = weights * (_softplus(own_logits) - own_logits * weights)
    own = torch.where(fg_mask, positive - _negative_focal(own_logits), 0.0)
    return negative + own.sum(dim=1)


def loss_from_sums(image_sums: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """The loss of all images together, however many workers computed their sums.

    Args:
        image_sums: (B, 4) box, cls, dfl and target-score sums of every image of the batch.
        gains: Weights of the terms.

    Returns:
        The loss () = sum of the terms times B, and the terms (3,) with gains, before times B.
    """
    total = image_sums.sum(dim=0)  # (4,)
    terms = total[:3] / total[3].clamp(min=1.0)
    items = terms * torch.tensor(gains, dtype=terms.dtype, device=terms.device)
    return items.sum() * image_sums.shape[0], items


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=_SOFTPLUS_THRESHOLD)


def _negative_focal(x: Tensor) -> Tensor:
    return 0.75 * x.sigmoid().square() * _softplus(x)
