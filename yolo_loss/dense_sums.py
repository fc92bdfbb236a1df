"""The loss's sums per image over all anchors, background weighing nothing: no data-dependent shape."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.anchors import decode
from yolo_loss.lookup import labels_and_boxes
from yolo_loss.results import Assignment, GroundTruth, Predictions
from yolo_loss.terms import box_term, class_term_of_levels, dfl_term, own_class_term


def dense_sums(predictions: Predictions, ground_truth: GroundTruth, assignment: Assignment, class_loss: str) -> Tensor:
    """Sums of the terms, differentiable by plain autograd.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        (B, 4): box, cls, dfl and target-score sums.
    """
    reg_max = predictions.reg_max
    distri, logits = join_levels(predictions)
    fg_mask, _, weights = assignment
    labels, target_bboxes = labels_and_boxes(assignment, ground_truth)
    own_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B, A)
    own = torch.where(fg_mask, own_class_term(own_logits, weights, class_loss), 0.0)
    class_sum = class_term_of_levels(predictions.pred_scores, class_loss) + own.sum(dim=1)

    target_grid = target_bboxes / predictions.strides  # (B, A, 4)
    pred_bboxes = decode(distri, predictions.anchor_points, reg_max)  # (B, A, 4)
    # Background boxes are replaced before the term, so that no non-finite derivative of theirs is multiplied by 0.
    pred_bboxes = torch.where(fg_mask.unsqueeze(-1), pred_bboxes, 0.0)
    box_sum = (torch.where(fg_mask, box_term(pred_bboxes, target_grid), 0.0) * weights).sum(dim=1)
    dfl = dfl_term(distri.unflatten(1, (4, reg_max)).movedim(3, 1), target_grid, predictions.anchor_points)
    dfl_sum = (torch.where(fg_mask, dfl, 0.0) * weights).sum(dim=1)
    return torch.stack((box_sum, class_sum, dfl_sum, weights.sum(dim=1)), dim=1)


def join_levels(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Box distributions (B, 4R, A) and class logits (B, C, A) of all levels, in the type to compute in."""
    dtype = predictions.anchor_points.dtype
    distri = torch.cat([level.view().to(dtype) for level in predictions.pred_distri], dim=2)
    logits = torch.cat([level.view().to(dtype) for level in predictions.pred_scores], dim=2)
    return distri, logits
