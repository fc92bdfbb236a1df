"""The loss's sums per image with box and distribution terms on the foreground alone.

The gradient of a map is written once, into the map's own layout: autograd would write a full-size zero for each slice
and each gather and add them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
) -> Tensor:
    """Sums of the terms.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        most: The foreground has no more anchors, and no GPU is asked how many; None: it is.

    Returns:
        (B, 4): box, cls, dfl and target-score sums, differentiable in every way that torch has but ``vmap``.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, max_foreground)
    sources = [source for level in predictions.levels for source in level]
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources) and not transformed(sources):
        sums: Tensor = _SparseSums.apply(predictions, foreground, class_loss, *sources)  # type: ignore[no-untyped-call]
        return sums
    return _plain_sums(predictions, foreground, class_loss)


def _plain_sums(predictions: Predictions, foreground: Foreground, class_loss: str) -> Tensor:
    """The sums in operations that all have derivatives of their own."""
    terms = row_losses(foreground_rows(predictions, foreground), predictions.reg_max, class_loss)
    return sum_per_image(predictions, foreground, foreground.zero_invalid(terms), class_loss)


def sum_per_image(predictions: Predictions, foreground: Foreground, terms: RowLosses, class_loss: str) -> Tensor:
    """Sums per image (B, 4) of the foreground's terms and of the class term's part that all anchors have."""
    columns = torch.stack((*terms, foreground.weight), dim=1)  # (N, 4)
    everywhere = background_class_loss_of_levels(predictions.pred_scores, class_loss).to(columns.dtype)  # (B,)
    nothing = torch.zeros_like(everywhere)
    # Stacked, not multiplied by 0 and 1: a class term that is no number stays in its column.
    return torch.stack((nothing, everywhere, nothing, nothing), dim=1).index_add(0, foreground.image, columns)


class _SparseSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, predictions: Predictions, foreground: Foreground, class_loss: str, *sources: Tensor
    ) -> Tensor:
        rows = foreground_rows(predictions, foreground)
        derived = foreground.zero_invalid(row_gradients(rows, predictions.reg_max, class_loss))
        by_class = foreground.class_gradients(rows.assigned_logits, class_loss)
        ctx.predictions, ctx.foreground, ctx.class_loss = predictions, foreground, class_loss
        # The sources are saved for autograd to notice when somebody overwrites them in between.
        ctx.save_for_backward(derived.box_grad_distri, derived.dfl_grad_distri, by_class, *sources)
        return sum_per_image(detached(predictions), foreground, derived.terms, class_loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        by_box, by_dfl, by_class, *_ = ctx.saved_tensors
        if torch.is_grad_enabled() or batched(grad_output):
            return None, None, None, *_differentiable_gradients(ctx, grad_output)
        of_row = grad_output[ctx.foreground.image]  # (N, 4)
        rows = by_box * of_row[:, 0:1] + by_dfl * of_row[:, 2:3]
        own = by_class * of_row[:, 1]
        needed = ctx.needs_input_grad[3:]
        cut = ctx.foreground.per_level
        levels = zip(
            ctx.predictions.levels, ctx.foreground.of_level, cut(rows), cut(own), cut(ctx.foreground.label), strict=True
        )
        gradients: list[Tensor | None] = []
        for level, place, *values in levels:
            pair = _level_gradients(ctx, level, place, grad_output[:, 1], *values)
            needs = needed[len(gradients) : len(gradients) + 2]
            gradients += [part if need else None for part, need in zip(pair, needs, strict=True)]
        return None, None, None, *gradients


@torch.enable_grad()
def _differentiable_gradients(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The gradients for ``create_graph=True``, which are to be differentiated again, and for several at once."""
    predictions: Predictions = ctx.predictions
    levels = [
        [level.distri_source] if level.distri_source is level.scores_source else list(level)
        for level in predictions.levels
    ]
    needed = [source for level in levels for source in level if source.requires_grad]
    sums = _plain_sums(predictions, ctx.foreground, ctx.class_loss)
    found = iter(torch.autograd.grad(sums, needed, grad_output, create_graph=True))
    gradients: list[Tensor | None] = []
    for level in levels:
        own = [next(found) if source.requires_grad else None for source in level]
        gradients += own if len(own) > 1 else [*own, None]
    return gradients


def _level_gradients(
    ctx: Any, level: Level, place: tuple[Tensor, Tensor], by_class_sum: Tensor, rows: Tensor, own: Tensor, label: Tensor
) -> Sequence[Tensor | None]:
    """Gradients of a level's two tensors; where they are one, it is returned once, first."""
    predictions: Predictions = ctx.predictions
    boxes, classes = 4 * predictions.reg_max, predictions.num_classes
    same = level.distri_source is level.scores_source
    whole = lazy_zeros_like(level.scores_source)
    scores = whole[:, whole.shape[1] - classes :]
    logits = level.scores_source[:, whole.shape[1] - classes :]
    write_background_class_gradient(logits, by_class_sum[:, None, None], ctx.class_loss, out=scores)
    distri = whole if same else lazy_zeros_like(level.distri_source)

    image, anchor = place
    channels = torch.arange(boxes, device=anchor.device)
    distri[image[:, None], channels, anchor[:, None]] = rows.to(distri.dtype)
    scores[image, label, anchor] = own.to(scores.dtype)
    return (whole, None) if same else (distri, whole)
