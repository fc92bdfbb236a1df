"""Sums of the losses per image, with box and distribution losses of the foreground alone.

Backward writes a map's gradient once, in the map's own layout: autograd would write a full-size zero for each slice and
each gather and add them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_loss.class_factors import ClassFactors, factors_of_levels
from yolo_loss.execution.buffers import lazy_zeros_like
from yolo_loss.execution.transforms import batched, detached, transformed
from yolo_loss.losses import background_class_loss_of_levels, write_background_class_gradient
from yolo_loss.reductions.foreground import (
    Foreground,
    RowLosses,
    find_foreground,
    foreground_rows,
    row_gradients,
    row_losses,
)
from yolo_loss.structures import Assignment, GroundTruth, Level, Predictions


def sparse_sums(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    max_foreground: int | None = None,
    factors: ClassFactors | None = None,
) -> Tensor:
    """Sum the losses of each image.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        max_foreground: As in ``find_foreground``.
        factors: Factors of the class loss's elements; None: all 1.

    Returns:
        (B, 4): box, cls, dfl or l1, and target-score sums, differentiable in every way that torch has except ``vmap``.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, max_foreground, factors)
    sources = [source for level in predictions.levels for source in level]
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources) and not transformed(sources):
        sums: Tensor = _SparseSums.apply(predictions, foreground, class_loss, factors, *sources)  # type: ignore[no-untyped-call]
        return sums
    return _differentiable_sums(predictions, foreground, class_loss, factors)


def _differentiable_sums(
    predictions: Predictions, foreground: Foreground, class_loss: str, factors: ClassFactors | None
) -> Tensor:
    """The sums in operations that all have derivatives of their own."""
    losses = row_losses(foreground_rows(predictions, foreground), predictions.reg_max, class_loss)
    return sum_per_image(predictions, foreground, foreground.zero_padding(losses), class_loss, factors)


def sum_per_image(
    predictions: Predictions,
    foreground: Foreground,
    losses: RowLosses,
    class_loss: str,
    factors: ClassFactors | None = None,
) -> Tensor:
    """Sums per image (B, 4) of the foreground's losses and of the background class loss of all anchors.

    Args:
        predictions: The head's output.
        foreground: Its foreground, found with the same factors.
        losses: Of each foreground anchor, the class loss without its factor.
        class_loss: ``bce`` or ``varifocal``.
        factors: Factors of the class loss's elements; None: all 1.
    """
    columns = torch.stack((losses.box, foreground.weigh(losses.cls), losses.dfl, foreground.weight), dim=1)  # (N, 4)
    background = background_class_loss_of_levels(predictions.pred_scores, class_loss, factors).to(columns.dtype)  # (B,)
    zeros = torch.zeros_like(background)
    # Stacked, not multiplied by 0 and 1: a class loss that is NaN stays in its column.
    return torch.stack((zeros, background, zeros, zeros), dim=1).index_add(0, foreground.image, columns)


class _SparseSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predictions: Predictions,
        foreground: Foreground,
        class_loss: str,
        factors: ClassFactors | None,
        *sources: Tensor,
    ) -> Tensor:
        rows = foreground_rows(predictions, foreground)
        gradients = foreground.zero_padding(row_gradients(rows, predictions.reg_max, class_loss))
        grad_class = foreground.class_gradients(rows.assigned_logits, class_loss)
        ctx.predictions, ctx.foreground, ctx.class_loss, ctx.factors = predictions, foreground, class_loss, factors
        # The sources are saved so that autograd notices when they are overwritten before backward.
        ctx.save_for_backward(gradients.box_grad_distri, gradients.dfl_grad_distri, grad_class, *sources)
        return sum_per_image(detached(predictions), foreground, gradients.losses, class_loss, factors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        box_grad, dfl_grad, grad_class, *_ = ctx.saved_tensors
        if torch.is_grad_enabled() or batched(grad_output):
            return None, None, None, None, *_differentiable_gradients(ctx, grad_output)
        grad_sums = grad_output[ctx.foreground.image]  # (N, 4)
        grad_distri = box_grad * grad_sums[:, 0:1] + dfl_grad * grad_sums[:, 2:3]
        grad_assigned = grad_class * grad_sums[:, 1]
        needed = ctx.needs_input_grad[4:]
        foreground: Foreground = ctx.foreground
        rows = (foreground.per_level(values) for values in (grad_distri, grad_assigned, foreground.label))
        gradients: list[Tensor | None] = []
        levels, factors = ctx.predictions.levels, factors_of_levels(ctx.factors, ctx.predictions.pred_scores)
        for level, own, index, *values in zip(levels, factors, foreground.level_indices, *rows, strict=True):
            pair = _level_gradients(ctx, level, own, index, grad_output[:, 1], *values)
            needs = needed[len(gradients) : len(gradients) + 2]
            gradients += [part if need else None for part, need in zip(pair, needs, strict=True)]
        return None, None, None, None, *gradients


@torch.enable_grad()
def _differentiable_gradients(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated again, for ``create_graph=True``, or batched."""
    predictions: Predictions = ctx.predictions
    levels = [
        [level.distri_source] if level.distri_source is level.scores_source else list(level)
        for level in predictions.levels
    ]
    needed = [source for level in levels for source in level if source.requires_grad]
    sums = _differentiable_sums(predictions, ctx.foreground, ctx.class_loss, ctx.factors)
    found = iter(torch.autograd.grad(sums, needed, grad_output, create_graph=True))
    gradients: list[Tensor | None] = []
    for level in levels:
        own = [next(found) if source.requires_grad else None for source in level]
        gradients += own if len(own) > 1 else [*own, None]
    return gradients


def _level_gradients(
    ctx: Any,
    level: Level,
    factors: ClassFactors | None,
    index: tuple[Tensor, Tensor],
    grad_class_sum: Tensor,
    grad_distri: Tensor,
    grad_assigned: Tensor,
    label: Tensor,
) -> Sequence[Tensor | None]:
    """Gradients of a level's two tensors; where they are one, it is returned once, first."""
    predictions: Predictions = ctx.predictions
    boxes, classes = 4 * predictions.reg_max, predictions.num_classes
    same = level.distri_source is level.scores_source
    gradient = lazy_zeros_like(level.scores_source)
    scores = gradient[:, gradient.shape[1] - classes :]
    logits = level.scores_source[:, gradient.shape[1] - classes :]
    write_background_class_gradient(logits, grad_class_sum[:, None, None], ctx.class_loss, scores, factors)
    distri = gradient if same else lazy_zeros_like(level.distri_source)

    image, anchor = index
    channels = torch.arange(boxes, device=anchor.device)
    distri[image[:, None], channels, anchor[:, None]] = grad_distri.to(distri.dtype)
    scores[image, label, anchor] = grad_assigned.to(scores.dtype)
    return (gradient, None) if same else (distri, gradient)
