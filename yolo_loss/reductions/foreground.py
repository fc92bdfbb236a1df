"""The foreground anchors of an assignment as lists, with their targets, their losses and gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from yolo_loss.anchors import decode_rows
from yolo_loss.assignment.segment_ops import keep_dummy, true_indices
from yolo_loss.boxes import bbox2dist, ciou_with_gradient, dist2bbox
from yolo_loss.class_factors import ClassFactors
from yolo_loss.execution.buffers import as_array
from yolo_loss.losses import (
    assigned_class_correction,
    assigned_class_gradient,
    background_class_gradient,
    box_loss,
    dfl_loss,
    dfl_of_targets,
    l1_loss,
    two_hot_targets,
)
from yolo_loss.structures import Assignment, GroundTruth, Predictions


class Rows(NamedTuple):
    """Predictions at N anchors, with their targets.

    Attributes:
        distri: (N, 4R) logits of the box distributions, side-major.
        assigned_logits: (N,) logits of the assigned classes.
        weight: (N,) normalized alignment scores.
        target_grid: (N, 4) target boxes, xyxy, grid units.
        point: (N, 2) anchor points, grid units.
        side_scale: (N, 2) a grid unit as a fraction of the image's width and height; None with R > 1, where it is not
            needed.
    """

    distri: Tensor
    assigned_logits: Tensor
    weight: Tensor
    target_grid: Tensor
    point: Tensor
    side_scale: Tensor | None = None


class RowLosses(NamedTuple):
    """Weighted losses of each row, (N,) each; ``dfl`` is l1 where R = 1."""

    box: Tensor
    cls: Tensor
    dfl: Tensor


class RowGradients(NamedTuple):
    """Weighted losses of each row, and their derivatives by the row's distributions.

    Attributes:
        box: (N,) loss.
        cls: (N,) loss.
        dfl: (N,) loss; l1 where R = 1.
        box_grad_distri: (N, 4R) derivative of the box loss.
        dfl_grad_distri: (N, 4R) derivative of ``dfl``.
    """

    box: Tensor
    cls: Tensor
    dfl: Tensor
    box_grad_distri: Tensor
    dfl_grad_distri: Tensor

    @property
    def losses(self) -> RowLosses:
        """The losses without their derivatives."""
        return RowLosses(self.box, self.cls, self.dfl)


PerRow = TypeVar("PerRow", RowLosses, RowGradients)


class Foreground(NamedTuple):
    """The foreground anchors, level by level, (N,) each unless said otherwise.

    Attributes:
        level_indices: Per level b and a, counted from the level's first anchor, (N_i,) each.
        image: b.
        label: Class.
        weight: Normalized alignment score.
        target_grid: (N, 4) target box, xyxy, grid units.
        point: (N, 2) anchor point, grid units.
        side_scale: (N, 2) as in ``Rows``.
        class_factor: Factor of the class loss's element of the label; None: 1.
        valid: bool; False where the list is padded with background, of weight 0. None: it has no padding.
    """

    level_indices: list[tuple[Tensor, Tensor]]
    image: Tensor
    label: Tensor
    weight: Tensor
    target_grid: Tensor
    point: Tensor
    side_scale: Tensor | None
    class_factor: Tensor | None
    valid: Tensor | None

    def per_level(self, values: Tensor) -> list[Tensor]:
        """Split values (N, ...) into levels."""
        return split_levels(values, (image.shape[0] for image, _ in self.level_indices), dim=0)

    def zero_padding(self, values: PerRow) -> PerRow:
        """Set losses or gradients to 0 on padding, where they may be NaN."""
        if self.valid is None:
            return values
        wide = self.valid.unsqueeze(1)
        return type(values)(*(torch.where(self.valid if field.dim() == 1 else wide, field, 0.0) for field in values))

    def class_gradients(self, assigned_logits: Tensor, class_loss: str) -> Tensor:
        """Derivative of the class loss by each anchor's logit of its label; on padding that of background.

        It has the factor of the label.

        Args:
            assigned_logits: (N,) those logits.
            class_loss: ``bce`` or ``varifocal``.

        Returns:
            (N,).
        """
        assigned = assigned_class_gradient(assigned_logits, self.weight, class_loss)
        if self.valid is not None:
            assigned = torch.where(self.valid, assigned, background_class_gradient(assigned_logits, class_loss))
        return self.weigh(assigned)

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply finite values (N,) of the class loss by their factors."""
        return values if self.class_factor is None else values * self.class_factor


def split_levels(values: Tensor, sizes: Iterable[int], dim: int) -> list[Tensor]:
    """Split a tensor by slices, because a split into unknown sizes is a sequence in ONNX."""
    parts, begin = [], 0
    for size in sizes:
        parts.append(values.narrow(dim, begin, size))
        begin += size
    return parts


def find_foreground(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    max_foreground: int | None = None,
    factors: ClassFactors | None = None,
) -> Foreground:
    """List the foreground anchors with their targets.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        max_foreground: Upper bound of the foreground anchors. Each level's list is padded to it with background, so
            that no GPU is asked for its length. None: lists are as long as the foreground.
        factors: Factors of the class loss's elements; None: all 1.
    """
    level_indices, anchors, offset = [], [], 0
    for level in predictions.levels:
        count = level.scores_source.shape[2]
        image, anchor = _list_foreground(assignment.fg_mask.narrow(1, offset, count), max_foreground)
        level_indices.append((image, anchor))
        anchors.append(anchor + offset)
        offset += count
    image, anchor = torch.cat([image for image, _ in level_indices]), torch.cat(anchors)
    index = image * offset + anchor
    slots = ground_truth.gt_labels.shape[1]
    slot = image * slots + assignment.target_gt_idx.flatten().index_select(0, index)
    label = ground_truth.gt_labels.flatten().index_select(0, slot).clamp(min=0)
    target_grid = ground_truth.gt_bboxes.flatten(0, 1).index_select(0, slot)
    target_grid = target_grid / predictions.strides.index_select(0, anchor)
    weight = assignment.target_weights.flatten().index_select(0, index)
    point = predictions.anchor_points.index_select(0, anchor)
    side_scale = predictions.side_scale.index_select(0, anchor) if predictions.reg_max == 1 else None
    class_factor = None if factors is None else factors.of_rows(image, label, index)
    padded = max_foreground is not None or torch.compiler.is_exporting()
    valid = assignment.fg_mask.flatten().index_select(0, index) if padded else None
    return Foreground(level_indices, image, label, weight, target_grid, point, side_scale, class_factor, valid)


def _list_foreground(flags: Tensor, max_foreground: int | None) -> tuple[Tensor, Tensor]:
    """Image and anchor, (N,) each, of a level's foreground (B, A_i), filled up to ``max_foreground``."""
    array = as_array(flags) if max_foreground is None else None
    if array is not None:
        image, anchor = (torch.from_numpy(index) for index in array.nonzero())
        return image, anchor
    flat, count = flags.flatten(), flags.shape[1]
    found = true_indices(keep_dummy(flat)) if max_foreground is None else indices_true_first(flat)[:max_foreground]
    image = torch.div(found, count, rounding_mode="floor")
    return image, found - image * count


def indices_true_first(flags: Tensor) -> Tensor:
    """List the indices of true flags, then those of false ones, each ascending.

    Args:
        flags: (N,) bool.

    Returns:
        (N,) int64, every index once.
    """
    index = torch.arange(flags.shape[0], device=flags.device)
    count = flags.cumsum(0)  # true flags up to and including each
    rank = torch.where(flags, count - 1, count[-1:] + index - count)
    return torch.empty_like(index).scatter_(0, rank, index)


def foreground_rows(predictions: Predictions, foreground: Foreground) -> Rows:
    """Gather the foreground's logits, in the dtype to compute in, and add their targets."""
    dtype = foreground.weight.dtype
    distri, logits = _pick_rows(predictions, foreground)
    distri, logits = distri.to(dtype), logits.to(dtype)
    if foreground.class_factor is not None:
        # A logit that does not count may be anything.
        logits = torch.where(foreground.class_factor > 0, logits, 0.0)
    return Rows(
        distri,
        logits,
        foreground.weight,
        foreground.target_grid,
        foreground.point,
        foreground.side_scale,
    )


def _pick_rows(predictions: Predictions, foreground: Foreground) -> tuple[Tensor, Tensor]:
    """Distributions (N, 4R) and logits of the labels (N,) of the foreground."""
    levels = zip(foreground.level_indices, predictions.pred_distri, predictions.pred_scores, strict=True)
    if all(distri_source is scores_source for distri_source, scores_source in predictions.levels):
        channels = foreground.per_level(_map_channels(predictions, foreground.label))
        rows = [
            scores._replace(first=0).pick(image[:, None], own, anchor[:, None])
            for ((image, anchor), _, scores), own in zip(levels, channels, strict=True)
        ]
        both = torch.cat(rows)
        return both[:, :-1], both[:, -1]
    channel = torch.arange(4 * predictions.reg_max, device=foreground.image.device)
    distributions, logits = [], []
    for ((image, anchor), distri, scores), label in zip(levels, foreground.per_level(foreground.label), strict=True):
        distributions.append(distri.pick(image[:, None], channel, anchor[:, None]))
        logits.append(scores.pick(image, label, anchor))
    return torch.cat(distributions), torch.cat(logits)


def _map_channels(predictions: Predictions, label: Tensor) -> Tensor:
    """Channels (N, 4R + 1) of raw maps: those of the distributions, then that of each anchor's label (N,)."""
    boxes = torch.arange(4 * predictions.reg_max, device=label.device)
    first = predictions.pred_scores[0].first
    return torch.cat((boxes.expand(label.shape[0], -1), (label + first).unsqueeze(1)), dim=1)


def row_losses(rows: Rows, reg_max: int, class_loss: str) -> RowLosses:
    """Compute the weighted losses of each row."""
    boxes = decode_rows(rows.distri, rows.point, reg_max)
    box = box_loss(boxes, rows.target_grid) * rows.weight
    if rows.side_scale is None:
        dfl = dfl_loss(rows.distri.unflatten(1, (4, reg_max)), rows.target_grid, rows.point)
    else:
        dfl = l1_loss(rows.distri, rows.target_grid, rows.point, rows.side_scale)
    cls = assigned_class_correction(rows.assigned_logits, rows.weight, class_loss)
    return RowLosses(box, cls, dfl * rows.weight)


def row_gradients(rows: Rows, reg_max: int, class_loss: str) -> RowGradients:
    """Compute the weighted losses of each row and their derivatives by the row's distributions, in closed form."""
    cls = assigned_class_correction(rows.assigned_logits, rows.weight, class_loss)
    weight = rows.weight.unsqueeze(1)
    if rows.side_scale is not None:
        box, box_grad = _box_gradient(rows.distri, rows)
        dfl = l1_loss(rows.distri, rows.target_grid, rows.point, rows.side_scale)
        direction = torch.sign(rows.distri - bbox2dist(rows.point, rows.target_grid))
        dfl_grad = direction * torch.cat((rows.side_scale, rows.side_scale), dim=1) * (weight / 4)
        return RowGradients(box, cls, dfl * rows.weight, box_grad, dfl_grad)
    logits = rows.distri.unflatten(1, (4, reg_max))
    bins = torch.arange(reg_max, dtype=logits.dtype, device=logits.device)
    probabilities = logits.softmax(dim=2)  # (N, 4, R)
    distance = (probabilities * bins).sum(dim=2)
    box, by_distance = _box_gradient(distance, rows)
    box_grad = probabilities * (bins - distance.unsqueeze(2)) * by_distance.unsqueeze(2)
    two_hot = two_hot_targets(rows.target_grid, rows.point, bins)
    dfl_grad = (probabilities - two_hot) * (weight / 4).unsqueeze(2)
    dfl = dfl_of_targets(logits, two_hot) * rows.weight
    return RowGradients(box, cls, dfl, box_grad.flatten(1), dfl_grad.flatten(1))


def _box_gradient(distance: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Weighted box loss (N,) of rows, and its derivative by their distances (N, 4)."""
    value, gradient = ciou_with_gradient(dist2bbox(distance, rows.point), rows.target_grid)
    # A larger distance moves left and top down, right and bottom up, and the loss is 1 - CIoU.
    low, high = gradient[:, :2], gradient[:, 2:]
    return (1 - value) * rows.weight, torch.cat((low, -high), dim=1) * rows.weight.unsqueeze(1)
