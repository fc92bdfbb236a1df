"""The loss with its gradients as plain tensor operations: what a graph needs, which has no autograd.

In eager mode ``loss.backward()`` gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.assignment.targets import labels_and_boxes
from yolo_loss.losses import class_derivative, class_term_of_levels, own_class_derivative
from yolo_loss.reductions.dense import join_levels
from yolo_loss.reductions.foreground import RowDerivatives, Rows, find_foreground, foreground_rows
from yolo_loss.reductions.sparse import add_up
from yolo_loss.structures import Assignment, Gains, GroundTruth, Predictions

Derive = Callable[[Rows], RowDerivatives]


class Upstream(NamedTuple):
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
    derive: Derive,
    most: int | None = None,
) -> SumsAndGradients:
    """Derivatives of the foreground's rows, scattered into those of the class term that all anchors have.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the terms.
        derive: ``row_derivatives`` with its options, in a form that the graph takes.
        most: The foreground has no more anchors, and no GPU is asked how many; None: it is.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, most)
    rows = foreground_rows(predictions, foreground)
    derived = foreground.only_real(derive(rows))
    image_sums = add_up(predictions, foreground, derived.terms, class_loss)
    upstream = upstream_of(image_sums, gains)
    by_distri = derived.box_by_distri * upstream.box + derived.dfl_by_distri * upstream.dfl
    by_own = foreground.class_derivatives(rows.own_logits, class_loss) * upstream.cls

    boxes = 4 * predictions.reg_max
    channels = torch.arange(boxes, device=by_own.device)
    cut = foreground.per_level
    gradients = []
    parts = zip(cut(by_distri), cut(by_own), cut(foreground.label), strict=True)
    for level, (image, anchor), (distri, own, label) in zip(
        predictions.levels, foreground.of_level, parts, strict=True
    ):
        whole = _background(level.scores_of, boxes, class_loss, upstream)
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
    derive: Derive,
) -> SumsAndGradients:
    """Derivatives of all anchors' rows, those of the background replaced by zeros; no scatter.

    Args:
        predictions: Raw maps; a level's two tensors are one.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the terms.
        derive: ``row_derivatives`` with its options, in a form that the graph takes.
    """
    foreground, weights = assignment.fg_mask, assignment.target_weights
    labels, target_bboxes = labels_and_boxes(assignment, ground_truth)
    distri, logits = join_levels(predictions)
    own_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B, A)
    points = predictions.anchor_points.expand(target_bboxes.shape[0], -1, -1)
    by_anchor = (distri.transpose(1, 2), own_logits, weights, target_bboxes / predictions.strides, points)
    derived = derive(Rows(*(tensor.flatten(0, 1) for tensor in by_anchor)))
    # The terms come with their derivatives: computed by themselves they would take every pass over the maps again.
    box, own_class, dfl = (torch.where(foreground, term.view(weights.shape), 0.0).sum(dim=1) for term in derived.terms)
    class_sum = class_term_of_levels(predictions.pred_scores, class_loss) + own_class
    image_sums = torch.stack((box, class_sum, dfl, weights.sum(dim=1)), dim=1)
    upstream = upstream_of(image_sums, gains)

    rows = derived.box_by_distri * upstream.box + derived.dfl_by_distri * upstream.dfl  # (B * A, 4R)
    # Chosen, not multiplied: a derivative of the background may be no number.
    by_distri = torch.where(foreground.unsqueeze(1), rows.view(*weights.shape, -1).transpose(1, 2), 0.0)
    own = own_class_derivative(own_logits, weights, class_loss)
    classes = torch.arange(predictions.num_classes, device=labels.device)[:, None]
    assigned = (labels.unsqueeze(1) == classes) & foreground.unsqueeze(1)  # (B, C, A)
    by_logits = torch.where(assigned, own.unsqueeze(1), class_derivative(logits, class_loss)) * upstream.cls
    return SumsAndGradients(image_sums, _cut(torch.cat((by_distri, by_logits), dim=1), predictions))


def upstream_of(image_sums: Tensor, gains: Gains) -> Upstream:
    """Derivatives of the loss, as ``loss_from_sums`` makes it, by the sums over the batch.

    Args:
        image_sums: (B, 4); soft scores carry no gradient.
        gains: Weights of the terms.
    """
    factor = image_sums.shape[0] / image_sums[:, 3].sum().clamp(min=1.0)
    return Upstream(*(gain * factor for gain in gains))


def _cut(joined: Tensor, predictions: Predictions) -> list[Tensor]:
    """(B, channels, A) cut into levels. Slices, because a split of unknown sizes is a sequence in ONNX."""
    levels, offset = [], 0
    for level in predictions.levels:
        anchors = level.scores_of.shape[2]
        levels.append(joined.narrow(2, offset, anchors))
        offset += anchors
    return levels


def _background(level: Tensor, boxes: int, class_loss: str, upstream: Upstream) -> Tensor:
    """A level's gradient as if it had no foreground, (B, 4R + C, A_i)."""
    dtype = upstream.cls.dtype
    by_logits = class_derivative(level[:, boxes:].to(dtype), class_loss) * upstream.cls
    nothing = by_logits.new_zeros((level.shape[0], boxes, level.shape[2]))
    return torch.cat((nothing, by_logits), dim=1)
