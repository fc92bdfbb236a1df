"""The loss, divided among ground truths and background so that the parts add up to it."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.assignment.segment_ops import segment_sum
from yolo_loss.class_factors import ClassFactors
from yolo_loss.execution.buffers import constants
from yolo_loss.execution.products import softplus
from yolo_loss.explain.structures import LossShares
from yolo_loss.losses import assigned_class_loss, background_class_loss_of_levels, loss_from_sums
from yolo_loss.reductions.foreground import Foreground, find_foreground, foreground_rows, row_losses
from yolo_loss.reductions.sparse import sum_per_image
from yolo_loss.structures import Assignment, Gains, GroundTruth, Predictions


def share_loss(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    gains: Gains,
    factors: ClassFactors | None = None,
) -> LossShares:
    """Compute the loss and everyone's part of it.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the losses.
        factors: Factors of the class loss's elements; None: all 1.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, factors=factors)
    rows = foreground_rows(predictions, foreground)
    losses = foreground.zero_padding(row_losses(rows, predictions.reg_max, class_loss))
    image_sums = sum_per_image(predictions, foreground, losses, class_loss, factors)
    loss, items = loss_from_sums(image_sums, gains)

    own = foreground.weigh(assigned_class_loss(rows.assigned_logits, rows.weight, class_loss))
    counted = foreground.weigh(target_zero_loss(rows.assigned_logits, class_loss))
    if foreground.valid is not None:
        own, counted = (torch.where(foreground.valid, values, 0.0) for values in (own, counted))
    images, slots, _ = ground_truth.gt_labels.shape
    slot = slots_of(foreground, predictions, assignment, slots)
    columns = torch.stack([segment_sum(slot, column, images * slots) for column in (losses.box, own, losses.dfl)], 1)
    background = background_class_loss_of_levels(predictions.pred_scores, class_loss, factors).to(columns.dtype)
    # An infinite element leaves an infinite sum, not infinity minus infinity.
    counted = torch.where(counted < torch.inf, counted, 0.0)
    background = background - segment_sum(foreground.image, counted, images)

    truth_sums = columns.view(images, slots, 3)
    weights = constants(gains, truth_sums) / image_sums[:, 3].sum().clamp(min=1.0) * images
    truth_loss, background_loss = (truth_sums * weights).sum(dim=2), background * weights[1]
    return LossShares(loss, items, image_sums, truth_sums, background, truth_loss, background_loss)


def target_zero_loss(logits: Tensor, class_loss: str) -> Tensor:
    """Class loss of each element as if its target were 0, as the background's sum counts it."""
    entropy = softplus(logits)
    return entropy if class_loss == "bce" else 0.75 * logits.sigmoid().square() * entropy


def slots_of(foreground: Foreground, predictions: Predictions, assignment: Assignment, slots: int) -> Tensor:
    """The slot b * M + m of each foreground anchor, (N,) int64."""
    anchors = assignment.fg_mask.shape[1]
    index, offset = [], 0
    for (image, anchor), level in zip(foreground.level_indices, predictions.levels, strict=True):
        index.append(image * anchors + anchor + offset)
        offset += level.scores_source.shape[2]
    return foreground.image * slots + assignment.target_gt_idx.flatten().index_select(0, torch.cat(index))
