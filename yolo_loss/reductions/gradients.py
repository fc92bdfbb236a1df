"""The loss with its gradients as plain tensor operations: what a graph needs, which has no autograd.

In eager mode ``loss.backward()`` gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.targets import labels_and_boxes
from yolo_loss.losses import assigned_class_gradient, background_class_gradient, background_class_loss_of_levels
from yolo_loss.reductions.dense import join_levels
from yolo_loss.reductions.foreground import RowGradients, Rows, find_foreground, foreground_rows
from yolo_loss.reductions.sparse import sum_per_image
from yolo_loss.structures import Assignment, Gains, GroundTruth, Predictions

RowGradientFunction = Callable[[Rows], RowGradients]


class GradOutput(NamedTuple):
    """Derivatives of the loss by the three sums over the batch, () each."""

    box: Tensor
    cls: Tensor
    dfl: Tensor


class SumsAndGradients(NamedTuple):
    """What the loss is made from, and its gradients.

    Attributes:
        image_sums: (B, 4) box, cls, dfl and target-score sums.
        gradients: Of the loss by each level, (B, 4R + C, A_i).
    """

    image_sums: Tensor
    gradients: list[Tensor]


def sparse_gradients(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    gains: Gains,
    compute_row_gradients: RowGradientFunction,
    max_foreground: int | None = None,
) -> SumsAndGradients:
    """Derivatives of the foreground's rows, scattered into those of the class term that all anchors have.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the terms.
        derive: ``row_gradients`` with its options, in a form that the graph takes.
        most: The foreground has no more anchors, and no GPU is asked how many; None: it is.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, max_foreground)
    rows = foreground_rows(predictions, foreground)
    derived = foreground.zero_invalid(compute_row_gradients(rows))
    image_sums = sum_per_image(predictions, foreground, derived.terms, class_loss)
    grad_output = grad_output_of(image_sums, gains)
    grad_distri = derived.box_grad_distri * grad_output.box + derived.dfl_grad_distri * grad_output.dfl
    by_own = foreground.class_gradients(rows.assigned_logits, class_loss) * grad_output.cls

    boxes = 4 * predictions.reg_max
    channels = torch.arange(boxes, device=by_own.device)
    cut = foreground.per_level
    gradients = []
    parts = zip(cut(grad_distri), cut(by_own), cut(foreground.label), strict=True)
    for level, (image, anchor), (distri, own, label) in zip(
        predictions.levels, foreground.of_level, parts, strict=True
    ):
        whole = _background(level.scores_source, boxes, class_loss, grad_output)
        _, width, anchors = whole.shape
        first = image * (width * anchors) + anchor  # channel 0 of each foreground anchor
        place = torch.cat(((first[:, None] + channels * anchors).flatten(), first + (boxes + label) * anchors))
        values = torch.cat((distri.flatten(), own))
        gradients.append(whole.flatten().scatter(0, place, values).view(whole.shape))
    return SumsAndGradients(image_sums, gradients)


def dense_gradients(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    gains: Gains,
    compute_row_gradients: RowGradientFunction,
) -> SumsAndGradients:
    """Derivatives of all anchors' rows, those of the background replaced by zeros; no scatter.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the terms.
        derive: ``row_gradients`` with its options, in a form that the graph takes.
    """
    foreground, weights = assignment.fg_mask, assignment.target_weights
    labels, target_bboxes = labels_and_boxes(assignment, ground_truth)
    distri, logits = join_levels(predictions)
    assigned_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B, A)
    points = predictions.anchor_points.expand(target_bboxes.shape[0], -1, -1)
    by_anchor = (distri.transpose(1, 2), assigned_logits, weights, target_bboxes / predictions.strides, points)
    derived = compute_row_gradients(Rows(*(tensor.flatten(0, 1) for tensor in by_anchor)))
    # The terms come with their derivatives: computed by themselves they would take every pass over the maps again.
    box, own_class, dfl = (torch.where(foreground, term.view(weights.shape), 0.0).sum(dim=1) for term in derived.terms)
    class_sum = background_class_loss_of_levels(predictions.pred_scores, class_loss) + own_class
    image_sums = torch.stack((box, class_sum, dfl, weights.sum(dim=1)), dim=1)
    grad_output = grad_output_of(image_sums, gains)

    rows = derived.box_grad_distri * grad_output.box + derived.dfl_grad_distri * grad_output.dfl  # (B * A, 4R)
    # Chosen, not multiplied: a derivative of the background may be no number.
    grad_distri = torch.where(foreground.unsqueeze(1), rows.view(*weights.shape, -1).transpose(1, 2), 0.0)
    own = assigned_class_gradient(assigned_logits, weights, class_loss)
    classes = torch.arange(predictions.num_classes, device=labels.device)[:, None]
    assigned = (labels.unsqueeze(1) == classes) & foreground.unsqueeze(1)  # (B, C, A)
    grad_logits = (
        torch.where(assigned, own.unsqueeze(1), background_class_gradient(logits, class_loss)) * grad_output.cls
    )
    return SumsAndGradients(image_sums, _cut(torch.cat((grad_distri, grad_logits), dim=1), predictions))


def grad_output_of(image_sums: Tensor, gains: Gains) -> GradOutput:
    """Derivatives of the loss, as ``loss_from_sums`` makes it, by the sums over the batch.

    Args:
        image_sums: (B, 4); soft scores carry no gradient.
        gains: Weights of the terms.
    """
    factor = image_sums.shape[0] / image_sums[:, 3].sum().clamp(min=1.0)
    return GradOutput(*(gain * factor for gain in gains))


def _cut(joined: Tensor, predictions: Predictions) -> list[Tensor]:
    """(B, channels, A) cut into levels. Slices, because a split of unknown sizes is a sequence in ONNX."""
    levels, offset = [], 0
    for level in predictions.levels:
        anchors = level.scores_source.shape[2]
        levels.append(joined.narrow(2, offset, anchors))
        offset += anchors
    return levels


def _background(level: Tensor, boxes: int, class_loss: str, grad_output: GradOutput) -> Tensor:
    """A level's gradient as if it had no foreground, (B, 4R + C, A_i)."""
    dtype = grad_output.cls.dtype
    grad_logits = background_class_gradient(level[:, boxes:].to(dtype), class_loss) * grad_output.cls
    nothing = grad_logits.new_zeros((level.shape[0], boxes, level.shape[2]))
    return torch.cat((nothing, grad_logits), dim=1)
