"""The sums of the losses with their gradients as plain tensor operations, for graphs, which have no autograd.

In eager mode ``loss.backward()`` gives the same gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.targets import labels_and_boxes
from yolo_loss.class_factors import ClassFactors, factors_of_levels
from yolo_loss.losses import assigned_class_gradient, background_class_gradient, background_class_loss_of_levels
from yolo_loss.reductions.dense import join_levels
from yolo_loss.reductions.foreground import (
    RowLosses,
    Rows,
    find_foreground,
    foreground_rows,
    row_gradients,
    split_levels,
)
from yolo_loss.reductions.sparse import sum_per_image
from yolo_loss.structures import Assignment, Gains, GroundTruth, Predictions


class GradOutput(NamedTuple):
    """Derivatives of the loss by the three sums over the batch, () each."""

    box: Tensor
    cls: Tensor
    dfl: Tensor


def sparse_gradients(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    gains: Gains,
    max_foreground: int | None = None,
    factors: ClassFactors | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Scatter the gradients of the foreground's rows into the background class gradient of all anchors.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the losses.
        max_foreground: As in ``find_foreground``.
        factors: Factors of the class loss's elements; None: all 1.

    Returns:
        Box, cls, dfl and target-score sums (B, 4), and the gradient of the loss by each level, (B, 4R + C, A_i).
    """
    foreground = find_foreground(predictions, ground_truth, assignment, max_foreground, factors)
    rows = foreground_rows(predictions, foreground)
    of_rows = foreground.zero_padding(row_gradients(rows, predictions.reg_max, class_loss))
    image_sums = sum_per_image(predictions, foreground, of_rows.losses, class_loss, factors)
    grad_output = grad_output_of(image_sums, gains)
    grad_distri = of_rows.box_grad_distri * grad_output.box + of_rows.dfl_grad_distri * grad_output.dfl
    grad_assigned = foreground.class_gradients(rows.assigned_logits, class_loss) * grad_output.cls

    boxes = 4 * predictions.reg_max
    channels = torch.arange(boxes, device=grad_assigned.device)
    per_level = foreground.per_level
    gradients = []
    of_levels = factors_of_levels(factors, predictions.pred_scores)
    parts = zip(per_level(grad_distri), per_level(grad_assigned), per_level(foreground.label), strict=True)
    for level, own, (image, anchor), (distri, assigned, label) in zip(
        predictions.levels, of_levels, foreground.level_indices, parts, strict=True
    ):
        gradient = _background_gradient(level.scores_source, boxes, class_loss, grad_output, own)
        _, width, anchors = gradient.shape
        first = image * (width * anchors) + anchor  # channel 0 of each foreground anchor
        index = torch.cat(((first[:, None] + channels * anchors).flatten(), first + (boxes + label) * anchors))
        values = torch.cat((distri.flatten(), assigned))
        gradients.append(gradient.flatten().scatter(0, index, values).view(gradient.shape))
    return image_sums, gradients


def dense_gradients(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    gains: Gains,
    factors: ClassFactors | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Compute the gradients of all anchors' rows and replace those of background by zeros; no scatter.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the losses.
        factors: Factors of the class loss's elements; None: all 1.

    Returns:
        Box, cls, dfl and target-score sums (B, 4), and the gradient of the loss by each level, (B, 4R + C, A_i).
    """
    foreground, weights = assignment.fg_mask, assignment.target_weights
    labels, target_bboxes = labels_and_boxes(assignment, ground_truth)
    distri, logits = join_levels(predictions)
    assigned_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B, A)
    factor = None if factors is None else factors.of_labels(labels)
    if factors is not None:
        logits = factors.mask(logits)
    if factor is not None:
        assigned_logits = torch.where(factor > 0, assigned_logits, 0.0)
    all_anchors = [distri.transpose(1, 2), assigned_logits, weights, target_bboxes / predictions.strides]
    of_anchors = [predictions.anchor_points, *([predictions.side_scale] if predictions.reg_max == 1 else [])]
    all_anchors += [values.expand(target_bboxes.shape[0], -1, -1) for values in of_anchors]
    all_rows = Rows(*(values.flatten(0, 1) for values in all_anchors))
    of_rows = row_gradients(all_rows, predictions.reg_max, class_loss)
    # The losses come with their gradients: computed separately they would repeat every pass over the maps.
    rows = RowLosses(*(loss.view(weights.shape) for loss in of_rows.losses))
    rows = rows if factor is None else rows._replace(cls=rows.cls * factor)
    losses = (torch.where(foreground, loss, 0.0).sum(dim=1) for loss in rows)
    box, assigned_class, dfl = losses
    class_sum = background_class_loss_of_levels(predictions.pred_scores, class_loss, factors) + assigned_class
    image_sums = torch.stack((box, class_sum, dfl, weights.sum(dim=1)), dim=1)
    grad_output = grad_output_of(image_sums, gains)

    grad_rows = of_rows.box_grad_distri * grad_output.box + of_rows.dfl_grad_distri * grad_output.dfl
    # Selected, not multiplied by 0: a background derivative may be NaN.
    grad_distri = torch.where(foreground.unsqueeze(1), grad_rows.view(*weights.shape, -1).transpose(1, 2), 0.0)
    grad_assigned = assigned_class_gradient(assigned_logits, weights, class_loss)
    classes = torch.arange(predictions.num_classes, device=labels.device)[:, None]
    is_assigned = (labels.unsqueeze(1) == classes) & foreground.unsqueeze(1)  # (B, C, A)
    grad_logits = torch.where(is_assigned, grad_assigned.unsqueeze(1), background_class_gradient(logits, class_loss))
    grad_logits = grad_logits if factors is None else factors.weigh(grad_logits)
    gradients = torch.cat((grad_distri, grad_logits * grad_output.cls), dim=1)
    sizes = (level.scores_source.shape[2] for level in predictions.levels)
    return image_sums, split_levels(gradients, sizes, dim=2)


def grad_output_of(image_sums: Tensor, gains: Gains) -> GradOutput:
    """Derivatives of the loss, as ``loss_from_sums`` computes it, by the sums over the batch.

    Args:
        image_sums: (B, 4); normalized alignment scores carry no gradient.
        gains: Weights of the losses.
    """
    factor = image_sums.shape[0] / image_sums[:, 3].sum().clamp(min=1.0)
    return GradOutput(*(gain * factor for gain in gains))


def _background_gradient(
    level: Tensor, boxes: int, class_loss: str, grad_output: GradOutput, factors: ClassFactors | None
) -> Tensor:
    """A level's gradient (B, 4R + C, A_i) without foreground."""
    logits = level[:, boxes:].to(grad_output.cls.dtype)
    if factors is not None:
        logits = factors.mask(logits)
    grad_logits = background_class_gradient(logits, class_loss) * grad_output.cls
    grad_logits = grad_logits if factors is None else factors.weigh(grad_logits)
    zeros = grad_logits.new_zeros((level.shape[0], boxes, level.shape[2]))
    return torch.cat((zeros, grad_logits), dim=1)
