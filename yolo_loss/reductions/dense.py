"""Sums of the losses per image over all anchors, with weight 0 on background: no data-dependent shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolo_loss.anchors import decode
from yolo_loss.assignment.targets import labels_and_boxes
from yolo_loss.class_factors import ClassFactors
from yolo_loss.execution.channels import Channels
from yolo_loss.losses import assigned_class_loss, background_class_loss, box_loss, dfl_loss, l1_loss
from yolo_loss.structures import Assignment, GroundTruth, Predictions


def dense_sums(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    factors: ClassFactors | None = None,
) -> Tensor:
    """Sum the losses of each image, differentiable by plain autograd and under every transform.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        factors: Factors of the class loss's elements; None: all 1.

    Returns:
        (B, 4): box, cls, dfl or l1, and target-score sums.
    """
    reg_max = predictions.reg_max
    distri, logits = join_levels(predictions)
    fg_mask, _, weights = assignment
    labels, target_bboxes = labels_and_boxes(assignment, ground_truth)
    class_sum = _class_sum(logits, labels, assignment, class_loss, factors)

    # Background is replaced before anything is computed from it: a NaN derivative there would survive multiplication
    # by 0.
    target_grid = torch.where(fg_mask.unsqueeze(-1), target_bboxes / predictions.strides, 0.0)  # (B, A, 4)
    distri = torch.where(fg_mask.unsqueeze(1), distri, 0.0)
    pred_bboxes = decode(distri, predictions.anchor_points, reg_max)  # (B, A, 4)
    box_sum = (box_loss(pred_bboxes, target_grid) * weights).sum(dim=1)
    if reg_max == 1:
        dfl = l1_loss(distri.transpose(1, 2), target_grid, predictions.anchor_points, predictions.side_scale)
    else:
        dfl = dfl_loss(distri.unflatten(1, (4, reg_max)).movedim(3, 1), target_grid, predictions.anchor_points)
    dfl_sum = (dfl * weights).sum(dim=1)
    return torch.stack((box_sum, class_sum, dfl_sum, weights.sum(dim=1)), dim=1)


def _class_sum(
    logits: Tensor, labels: Tensor, assignment: Assignment, class_loss: str, factors: ClassFactors | None
) -> Tensor:
    """Class loss (B,) of joined logits (B, C, A), with the assigned classes apart from the others."""
    fg_mask, _, weights = assignment
    assigned = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B, A)
    # A logit of -inf has no background loss.
    others = logits.scatter(1, labels.unsqueeze(1), torch.where(fg_mask, -math.inf, assigned).unsqueeze(1))
    factor = None if factors is None else factors.of_labels(labels)  # (B, A)
    counts = fg_mask if factor is None else fg_mask & (factor > 0)
    assigned_loss = assigned_class_loss(torch.where(counts, assigned, 0.0), weights, class_loss)
    assigned_loss = assigned_loss if factor is None else assigned_loss * factor
    other_loss = background_class_loss(Channels(others, 0, others.shape[1]), class_loss, factors)
    return other_loss + torch.where(fg_mask, assigned_loss, 0.0).sum(dim=1)


def join_levels(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Join the box distributions (B, 4R, A) and class logits (B, C, A) of all levels, in the dtype to compute in."""
    dtype = predictions.anchor_points.dtype
    distri = torch.cat([level.view().to(dtype) for level in predictions.pred_distri], dim=2)
    logits = torch.cat([level.view().to(dtype) for level in predictions.pred_scores], dim=2)
    return distri, logits
