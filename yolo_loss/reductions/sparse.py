"""Sums of the losses per image, with box and distribution losses of the foreground alone.

Backward writes a map's gradient once, in the map's own layout: autograd would write a full-size zero for each slice and
each gather and add them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolo_loss.anchors import compute_dtype
from yolo_loss.class_factors import ClassFactors, factors_of_levels
from yolo_loss.execution.buffers import constants, lazy_zeros_like
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.chunks import map_images
from yolo_loss.execution.compilation import compiling_kernels, kernels_compiled
from yolo_loss.execution.products import in_place, softplus_sums_with_gradient
from yolo_loss.execution.transforms import batched, detached, transformed
from yolo_loss.losses import background_class_loss_of_levels, write_background_class_gradient
from yolo_loss.reductions.foreground import (
    Foreground,
    RowGradients,
    RowLosses,
    find_foreground,
    foreground_rows,
    row_gradients,
    row_losses,
)
from yolo_loss.structures import Assignment, Gains, GroundTruth, Level, Predictions


def sparse_sums(
    predictions: Predictions,
    ground_truth: GroundTruth,
    assignment: Assignment,
    class_loss: str,
    max_foreground: int | None = None,
    factors: ClassFactors | None = None,
    gains: Gains | None = None,
) -> Tensor:
    """Sum the losses of each image.

    Args:
        predictions: The head's output.
        ground_truth: Padded, M >= 1.
        assignment: Its targets.
        class_loss: ``bce`` or ``varifocal``.
        max_foreground: As in ``find_foreground``.
        factors: Factors of the class loss's elements; None: all 1.
        gains: Of the loss that ``loss_from_sums`` will form. The sums are the same without, but backward then takes
            another pass over the class logits.

    Returns:
        (B, 4): box, cls, dfl or l1, and target-score sums, differentiable in every way that torch has except ``vmap``.
    """
    foreground = find_foreground(predictions, ground_truth, assignment, max_foreground, factors)
    sources = [source for level in predictions.levels for source in level]
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources) and not transformed(sources):
        sums: Tensor = _SparseSums.apply(predictions, foreground, class_loss, factors, gains, *sources)  # type: ignore[no-untyped-call]
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
    background = _background_image_by_image(predictions.pred_scores, class_loss, factors)
    return _add_rows(background, foreground, losses)


def _background_image_by_image(levels: Sequence[Channels], class_loss: str, factors: ClassFactors | None) -> Tensor:
    """``background_class_loss_of_levels`` through ``map_images``."""
    given = {} if factors is None else {name: field for name, field in factors._asdict().items() if field is not None}

    def of_images(tensors: Sequence[Tensor]) -> Tensor:
        own = [level._replace(source=source) for level, source in zip(levels, tensors[: len(levels)], strict=True)]
        fields = dict(zip(given, tensors[len(levels) :], strict=True))
        return background_class_loss_of_levels(own, class_loss, ClassFactors(**fields) if fields else None)

    return map_images(of_images, [*(level.source for level in levels), *given.values()])


def _add_rows(background: Tensor, foreground: Foreground, losses: RowLosses) -> Tensor:
    """Sums (B, 4) of the foreground's losses and of a background class loss (B,)."""
    columns = torch.stack((losses.box, foreground.weigh(losses.cls), losses.dfl, foreground.weight), dim=1)  # (N, 4)
    background = background.to(columns.dtype)
    zeros = torch.zeros_like(background)
    # Stacked, not multiplied by 0 and 1: a class loss that is NaN stays in its column.
    return torch.stack((zeros, background, zeros, zeros), dim=1).index_add(0, foreground.image, columns)


class _Prepared(NamedTuple):
    """Gradients of the background's class loss, written in forward.

    Attributes:
        maps: Of each level, of ``scores_source``; zero at all other channels.
        scale: (B,) derivative by the class sums that they were computed for.
    """

    maps: list[Tensor]
    scale: Tensor

    def scaled(self, scale: Tensor, classes: int) -> list[Tensor] | None:
        """The maps for another derivative, in place; None where they have to be computed again."""
        if not torch.equal(scale, self.scale):
            factor = scale / self.scale
            if not bool(factor.isfinite().all()):
                return None
            for gradient in self.maps:
                gradient[:, gradient.shape[1] - classes :].mul_(factor[:, None, None])
        return self.maps


def _prepare(
    predictions: Predictions, losses: RowLosses, foreground: Foreground, gains: Gains, maps: list[Tensor]
) -> tuple[Tensor, _Prepared]:
    """The background's class sums (B,); writes their gradient by the loss that ``loss_from_sums`` forms to ``maps``."""
    images = predictions.levels[0].scores_source.shape[0]
    total = _add_rows(foreground.weight.new_zeros(images), foreground, losses).sum(dim=0)[3]
    # In the order of autograd's operations, so that the numbers are equal to the bit.
    scale = (images * constants(gains, total)[1] / total.clamp(min=1.0)).expand(images)
    return _sums_with_gradient(predictions, scale, maps), _Prepared(maps, scale)


def _empty_gradients(predictions: Predictions) -> list[Tensor]:
    return [lazy_zeros_like(level.scores_source) for level in predictions.levels]


def _sums_with_gradient(predictions: Predictions, scale: Tensor, maps: list[Tensor]) -> Tensor:
    """The background's class sums (B,); writes the gradient of their sum with weights ``scale`` (B,) to ``maps``."""
    channels = predictions.pred_scores
    out = [level._replace(source=gradient).view() for level, gradient in zip(channels, maps, strict=True)]
    return softplus_sums_with_gradient([level.view() for level in channels], scale[:, None, None], out)


def _foreground_gradients(
    predictions: Predictions, foreground: Foreground, class_loss: str
) -> tuple[RowGradients, Tensor]:
    """The foreground's losses with their gradients, and the class loss's (N,) by the logits of the labels."""
    rows = foreground_rows(predictions, foreground)
    gradients = foreground.zero_padding(row_gradients(rows, predictions.reg_max, class_loss))
    return gradients, foreground.class_gradients(rows.assigned_logits, class_loss)


class _SparseSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predictions: Predictions,
        foreground: Foreground,
        class_loss: str,
        factors: ClassFactors | None,
        gains: Gains | None,
        *sources: Tensor,
    ) -> Tensor:
        ahead = gains is not None and _takes_one_pass(predictions, class_loss, factors)
        # Allocated before the rows, so that the memory that the assignment has freed is used.
        maps = _empty_gradients(predictions) if ahead else []
        gradients, grad_class = _foreground_gradients(predictions, foreground, class_loss)
        ctx.predictions, ctx.foreground, ctx.class_loss, ctx.factors = predictions, foreground, class_loss, factors
        # The sources are saved so that autograd notices when they are overwritten before backward.
        ctx.save_for_backward(gradients.box_grad_distri, gradients.dfl_grad_distri, grad_class, *sources)
        ctx.prepared, ctx.compiled, predictions = None, compiling_kernels(), detached(predictions)
        if gains is None or not ahead:
            return sum_per_image(predictions, foreground, gradients.losses, class_loss, factors)
        background, ctx.prepared = _prepare(predictions, gradients.losses, foreground, gains, maps)
        return _add_rows(background, foreground, gradients.losses)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        box_grad, dfl_grad, grad_class, *_ = ctx.saved_tensors
        if torch.is_grad_enabled() or batched(grad_output):
            return None, None, None, None, None, *_differentiable_gradients(ctx, grad_output)
        grad_sums = grad_output[ctx.foreground.image]  # (N, 4)
        grad_distri = box_grad * grad_sums[:, 0:1] + dfl_grad * grad_sums[:, 2:3]
        grad_assigned = grad_class * grad_sums[:, 1]
        needed = ctx.needs_input_grad[5:]
        foreground: Foreground = ctx.foreground
        rows = (foreground.per_level(values) for values in (grad_distri, grad_assigned, foreground.label))
        gradients: list[Tensor | None] = []
        levels = ctx.predictions.levels
        with kernels_compiled(ctx.compiled):
            maps = _background_gradients(ctx, grad_output[:, 1])
        for level, gradient, index, *values in zip(levels, maps, foreground.level_indices, *rows, strict=True):
            pair = _level_gradients(ctx, level, gradient, index, *values)
            needs = needed[len(gradients) : len(gradients) + 2]
            gradients += [part if need else None for part, need in zip(pair, needs, strict=True)]
        return None, None, None, None, None, *gradients


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


def _background_gradients(ctx: Any, grad_class_sum: Tensor) -> list[Tensor]:
    """Per level the gradient of the background's class loss, in the shape of ``scores_source``; 0 elsewhere."""
    predictions: Predictions = ctx.predictions
    prepared: _Prepared | None = ctx.prepared
    ctx.prepared = None  # the maps become the gradients, and a second backward needs its own
    maps = None if prepared is None else prepared.scaled(grad_class_sum, predictions.num_classes)
    if maps is not None:
        return maps
    if _takes_one_pass(predictions, ctx.class_loss, ctx.factors):
        maps = _empty_gradients(predictions)
        _sums_with_gradient(predictions, grad_class_sum, maps)
        return maps
    factors, maps = factors_of_levels(ctx.factors, predictions.pred_scores), []
    for channels, own in zip(predictions.pred_scores, factors, strict=True):
        gradient = lazy_zeros_like(channels.source)
        out = channels._replace(source=gradient).view()
        write_background_class_gradient(channels.view(), grad_class_sum[:, None, None], ctx.class_loss, out, own)
        maps.append(gradient)
    return maps


def _takes_one_pass(predictions: Predictions, class_loss: str, factors: ClassFactors | None) -> bool:
    """Whether the background's class loss and its gradient come from one pass over the logits."""
    sources = [level.scores_source for level in predictions.levels]
    wide = compute_dtype(*sources)
    return class_loss == "bce" and factors is None and in_place(sources) and all(s.dtype == wide for s in sources)


def _level_gradients(
    ctx: Any,
    level: Level,
    gradient: Tensor,
    index: tuple[Tensor, Tensor],
    grad_distri: Tensor,
    grad_assigned: Tensor,
    label: Tensor,
) -> Sequence[Tensor | None]:
    """Gradients of a level's two tensors; where they are one, it is returned once, first.

    ``gradient`` has that of the background already.
    """
    predictions: Predictions = ctx.predictions
    boxes, classes = 4 * predictions.reg_max, predictions.num_classes
    same = level.distri_source is level.scores_source
    distri = gradient if same else lazy_zeros_like(level.distri_source)
    image, anchor = index
    Channels(distri, 0, boxes).put_(image, anchor, grad_distri.to(distri.dtype))
    scores = gradient[:, gradient.shape[1] - classes :]
    scores[image, label, anchor] = grad_assigned.to(scores.dtype)
    return (gradient, None) if same else (distri, gradient)
