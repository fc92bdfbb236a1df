"""The foreground anchors of an assignment, listed with what they are compared with."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from yolo_loss.anchors import decode_rows
from yolo_loss.assignment.segment_ops import is_exporting, keep_dummy, true_indices
from yolo_loss.losses import (
    assigned_class_correction,
    assigned_class_gradient,
    background_class_gradient,
    box_loss,
    dfl_loss,
)
from yolo_loss.structures import Assignment, GroundTruth, Predictions


class Rows(NamedTuple):
    """N anchors with what they are compared with.

    Attributes:
        distri: (N, 4R) logits of the box distributions, side-major.
        own_logits: (N,) logits of the assigned classes.
        weight: (N,) soft scores.
        target_grid: (N, 4) target boxes, xyxy, grid units.
        point: (N, 2) anchor points, grid units.
    """

    distri: Tensor
    assigned_logits: Tensor
    weight: Tensor
    target_grid: Tensor
    point: Tensor


class RowLosses(NamedTuple):
    """Weighted terms of each row, (N,) each."""

    box: Tensor
    cls: Tensor
    dfl: Tensor


class RowGradients(NamedTuple):
    """Terms with their derivatives.

    Attributes:
        box: (N,) term.
        cls: (N,) term.
        dfl: (N,) term.
        box_by_distri: (N, 4R).
        dfl_by_distri: (N, 4R).
    """

    box: Tensor
    cls: Tensor
    dfl: Tensor
    box_grad_distri: Tensor
    dfl_grad_distri: Tensor

    @property
    def terms(self) -> RowLosses:
        """Without derivatives."""
        return RowLosses(self.box, self.cls, self.dfl)


def row_losses(rows: Rows, reg_max: int, class_loss: str) -> RowLosses:
    """The terms of each row, weighted."""
    boxes = decode_rows(rows.distri, rows.point, reg_max)
    box = box_loss(boxes, rows.target_grid) * rows.weight
    dfl = dfl_loss(rows.distri.unflatten(1, (4, reg_max)), rows.target_grid, rows.point) * rows.weight
    return RowLosses(box, assigned_class_correction(rows.assigned_logits, rows.weight, class_loss), dfl)


def row_gradients(rows: Rows, reg_max: int, class_loss: str) -> RowGradients:
    """The terms of each row and their derivatives by the row's distributions, all detached."""
    with torch.enable_grad():
        distri = rows.distri.detach().requires_grad_()
        terms = row_losses(rows._replace(distri=distri), reg_max, class_loss)
        (by_box,) = torch.autograd.grad(terms.box.sum(), distri, retain_graph=True)
        # With R = 1 the third term is a constant.
        by_dfl = torch.autograd.grad(terms.dfl.sum(), distri)[0] if reg_max > 1 else torch.zeros_like(distri)
    box, cls, dfl = (term.detach() for term in terms)
    return RowGradients(box, cls, dfl, by_box, by_dfl)


Terms = TypeVar("Terms", RowLosses, RowGradients)


class Foreground(NamedTuple):
    """The foreground anchors, level by level, (N,) each unless said otherwise.

    Attributes:
        of_level: Per level b and a, counted from the level's first anchor, (N_i,) each.
        image: b.
        label: Class.
        weight: Soft score.
        target_grid: (N, 4) target box, xyxy, grid units.
        point: (N, 2) anchor point, grid units.
        real: bool; False where background fills the list up, of weight 0. None: nowhere.
    """

    of_level: list[tuple[Tensor, Tensor]]
    image: Tensor
    label: Tensor
    weight: Tensor
    target_grid: Tensor
    point: Tensor
    valid: Tensor | None

    def per_level(self, values: Tensor) -> list[Tensor]:
        """(N, ...) cut into levels. Slices, because a split of unknown sizes is a sequence in ONNX."""
        parts, begin = [], 0
        for image, _ in self.of_level:
            parts.append(values.narrow(0, begin, image.shape[0]))
            begin += image.shape[0]
        return parts

    def zero_invalid(self, terms: Terms) -> Terms:
        """Terms or derivatives, 0 on what fills the list up, also where they are no number there."""
        if self.valid is None:
            return terms
        wide = self.valid.unsqueeze(1)
        return type(terms)(*(torch.where(self.valid if term.dim() == 1 else wide, term, 0.0) for term in terms))

    def class_gradients(self, assigned_logits: Tensor, class_loss: str) -> Tensor:
        """Derivative of the class term by each anchor's logit of its label, background's where it fills the list up.

        Args:
            own_logits: (N,) those logits.
            class_loss: ``bce`` or ``varifocal``.

        Returns:
            (N,).
        """
        own = assigned_class_gradient(assigned_logits, self.weight, class_loss)
        return (
            own
            if self.valid is None
            else torch.where(self.valid, own, background_class_gradient(assigned_logits, class_loss))
        )


def find_foreground(
    predictions: Predictions, ground_truth: GroundTruth, assignment: Assignment, max_foreground: int | None = None
) -> Foreground:
    """List the foreground anchors with what they are to be compared with.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        most: The foreground has no more anchors; lists of each level are filled up to so many with background, so that
            no GPU is asked for their lengths. None: the lists are as long as they have to be.
    """
    of_level, anchors, offset = [], [], 0
    for level in predictions.levels:
        count = level.scores_source.shape[2]
        flags = assignment.fg_mask[:, offset : offset + count].flatten()
        found = (
            true_indices(keep_dummy(flags)) if max_foreground is None else true_indices_first(flags)[:max_foreground]
        )
        image = torch.div(found, count, rounding_mode="floor")
        within = found - image * count
        of_level.append((image, within))
        anchors.append(within + offset)
        offset += count
    image, anchor = torch.cat([image for image, _ in of_level]), torch.cat(anchors)
    place = image * offset + anchor
    slots = ground_truth.gt_labels.shape[1]
    slot = image * slots + assignment.target_gt_idx.flatten().index_select(0, place)
    label = ground_truth.gt_labels.flatten().index_select(0, slot).clamp(min=0)
    target_grid = ground_truth.gt_bboxes.flatten(0, 1).index_select(0, slot)
    target_grid = target_grid / predictions.strides.index_select(0, anchor)
    weight = assignment.target_weights.flatten().index_select(0, place)
    point = predictions.anchor_points.index_select(0, anchor)
    filled = max_foreground is not None or is_exporting()
    valid = assignment.fg_mask.flatten().index_select(0, place) if filled else None
    return Foreground(of_level, image, label, weight, target_grid, point, valid)


def true_indices_first(flags: Tensor) -> Tensor:
    """Places of the flags that are set, then of the others, each in order.

    Args:
        flags: (N,) bool.

    Returns:
        (N,) int64, every place once.
    """
    place = torch.arange(flags.shape[0], device=flags.device)
    before = flags.cumsum(0)  # set up to and with each
    rank = torch.where(flags, before - 1, before[-1:] + place - before)
    return torch.empty_like(place).scatter_(0, rank, place)


def foreground_rows(predictions: Predictions, foreground: Foreground) -> Rows:
    """The foreground's logits, in the type to compute in, with what they are compared with."""
    channels = torch.arange(4 * predictions.reg_max, device=foreground.image.device)
    rows, assigned_logits, begin = [], [], 0
    levels = zip(foreground.of_level, predictions.pred_distri, predictions.pred_scores, strict=True)
    for (image, anchor), distri, scores in levels:
        rows.append(distri.pick(image[:, None], channels, anchor[:, None]))
        label = foreground.label[begin : begin + image.shape[0]]
        assigned_logits.append(scores.pick(image, label, anchor))
        begin += image.shape[0]
    dtype = foreground.weight.dtype
    logits = torch.cat(rows).to(dtype), torch.cat(assigned_logits).to(dtype)
    return Rows(*logits, foreground.weight, foreground.target_grid, foreground.point)
