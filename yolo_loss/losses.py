"""The box, class and distribution losses before any sum, and the loss from their sums.

The class loss over all anchors and classes is split in two: the background loss, as if every target were 0, and what
the assigned class of each foreground anchor changes. So no dense target is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from yolo_loss.anchors import compute_dtype
from yolo_loss.boxes import bbox2dist, ciou
from yolo_loss.class_factors import ClassFactors, factors_of_levels
from yolo_loss.execution.buffers import constants
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.chunks import image_slices, map_chunks
from yolo_loss.execution.compilation import compiling_kernels, kernel
from yolo_loss.execution.products import HALVINGS, in_place, softplus, softplus_sums
from yolo_loss.structures import Gains


def loss_from_sums(image_sums: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """Compute the loss of all images together, however many workers computed their sums.

    Args:
        image_sums: (B, 4) box, cls, dfl and target-score sums of every image of the batch.
        gains: Weights of the losses.

    Returns:
        The loss () = sum of the three losses times B, and the losses (3,) with gains, before times B.
    """
    total = image_sums.sum(dim=0)  # (4,)
    losses = total[:3] / total[3].clamp(min=1.0)
    items = losses * constants(gains, losses)
    return items.sum() * image_sums.shape[0], items


def box_loss(pred_bboxes: Tensor, target_bboxes: Tensor) -> Tensor:
    """1 - CIoU.

    Args:
        pred_bboxes: (..., 4) xyxy, grid units.
        target_bboxes: (..., 4) xyxy, grid units.

    Returns:
        (...).
    """
    return 1 - ciou(pred_bboxes, target_bboxes)


def dfl_loss(distri: Tensor, target_bboxes: Tensor, anchor_points: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., arXiv 2006.04388), the mean over the four sides.

    The target is a two-hot vector, 1 - |d - r| at the two bins r beside d, so that its gradient needs no scatter.

    Args:
        distri: (..., 4, R) logits, R > 1.
        target_bboxes: (..., 4) xyxy, grid units.
        anchor_points: (..., 2) grid units, broadcast.

    Returns:
        (...).
    """
    bins = torch.arange(distri.shape[-1], dtype=distri.dtype, device=distri.device)
    return dfl_of_targets(distri, two_hot_targets(target_bboxes, anchor_points, bins))


def two_hot_targets(target_bboxes: Tensor, anchor_points: Tensor, bins: Tensor) -> Tensor:
    """The targets of ``dfl_loss``.

    Args:
        target_bboxes: (..., 4) xyxy, grid units.
        anchor_points: (..., 2) grid units, broadcast.
        bins: (R,) 0 to R - 1.

    Returns:
        (..., 4, R).
    """
    distance = bbox2dist(anchor_points, target_bboxes, bins.shape[0]).unsqueeze(-1)  # (..., 4, 1)
    return (1.0 - (distance - bins).abs()).clamp(min=0.0)


def dfl_of_targets(distri: Tensor, two_hot: Tensor) -> Tensor:
    """``dfl_loss`` (...) of logits and targets (..., 4, R)."""
    # Selected, not multiplied by 0: the logarithm of a bin beside the target may be infinite.
    log_probabilities = torch.where(two_hot > 0, distri.log_softmax(dim=-1), 0.0)
    return -(two_hot * log_probabilities).sum(dim=-1).mean(dim=-1)


def l1_loss(distance: Tensor, target_bboxes: Tensor, anchor_points: Tensor, side_scale: Tensor) -> Tensor:
    """Error of the four sides as a fraction of the image, their mean; it takes the place of ``dfl_loss`` where R = 1.

    Args:
        distance: (..., 4) predicted left, top, right, bottom, grid units.
        target_bboxes: (..., 4) xyxy, grid units.
        anchor_points: (..., 2) grid units, broadcast.
        side_scale: (..., 2) a grid unit as a fraction of the image's width and height, broadcast.

    Returns:
        (...).
    """
    error = (distance - bbox2dist(anchor_points, target_bboxes)).abs()  # (..., 4)
    return (error * torch.cat((side_scale, side_scale), dim=-1)).mean(dim=-1)


def background_class_loss(logits: Channels, class_loss: str, factors: ClassFactors | None = None) -> Tensor:
    """Class loss of a level as if every target were 0, summed over anchors and classes.

    Args:
        logits: C channels of a level, of any floating dtype.
        class_loss: ``bce``, binary cross-entropy, or ``varifocal`` (Zhang et al., arXiv 2008.13367), which weights
            the cross-entropy with 0.75 p^2 where the target is 0, and elsewhere with the target.
        factors: Factors of the level's elements; None: all 1.

    Returns:
        (B,) float32 or float64.
    """
    if _exports_products(class_loss, factors):
        return background_class_loss_of_levels([logits], class_loss, factors)
    dtype = compute_dtype(logits.source)
    if factors is not None:
        return _background_class_loss_with(factors, logits, dtype, class_loss)
    if class_loss == "bce" and compiling_kernels():
        return sum_by_planes(logits, dtype)
    return map_chunks(logits.view(), lambda chunk: _sum_background(chunk, dtype, class_loss))


def _background_class_loss_with(factors: ClassFactors, logits: Channels, dtype: torch.dtype, class_loss: str) -> Tensor:
    """``background_class_loss`` with factors: sums per class that are weighted afterwards, without a dense weight."""
    view = logits.view()
    return torch.cat(
        [_sum_weighted(view[images], factors.of_images(images), dtype, class_loss) for images in image_slices(view)]
    )


@kernel
def _sum_weighted(logits: Tensor, factors: ClassFactors, dtype: torch.dtype, class_loss: str) -> Tensor:
    loss = _background_varifocal if class_loss == "varifocal" else softplus
    per_class = loss(factors.mask(logits.to(dtype))).sum(dim=2)  # (B, C)
    return (per_class if factors.class_weights is None else per_class * factors.class_weights).sum(dim=1)


@kernel
def _sum_background(logits: Tensor, dtype: torch.dtype, class_loss: str) -> Tensor:
    loss = _background_varifocal if class_loss == "varifocal" else softplus
    return loss(logits.to(dtype)).sum(dim=(1, 2))


def background_class_loss_of_levels(
    levels: Sequence[Channels], class_loss: str, factors: ClassFactors | None = None
) -> Tensor:
    """``background_class_loss`` of all levels together, (B,); the factors are those of all anchors."""
    pairs = [*zip(levels, factors_of_levels(factors, levels), strict=True)]
    dtype = compute_dtype(*(level.source for level in levels))
    if _exports_products(class_loss, factors):
        return sum_by_products([level if own is None else own.mask_level(level) for level, own in pairs], dtype)
    if class_loss == "bce" and factors is None and in_place([level.source for level in levels]):
        return softplus_sums([level.view() for level in levels], dtype)
    return torch.stack([background_class_loss(level, class_loss, own) for level, own in pairs]).sum(dim=0)


def _exports_products(class_loss: str, factors: ClassFactors | None) -> bool:
    """Whether the class loss of a graph is a sum by products, in which no element has a weight of its own."""
    return class_loss == "bce" and torch.compiler.is_exporting() and (factors is None or factors.class_weights is None)


def background_class_gradient(logits: Tensor, class_loss: str) -> Tensor:
    """Derivative of ``background_class_loss`` by each logit.

    Args:
        logits: Of any shape.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        Of the same shape and dtype.
    """
    p = logits.sigmoid()
    if class_loss == "bce":
        return p
    # d/dx of 0.75 p^2 softplus(x), with dp/dx = p (1 - p) and d softplus/dx = p.
    return 0.75 * p.square() * (2 * (1 - p) * softplus(logits) + p)


def write_background_class_gradient(
    logits: Tensor, grad_output: Tensor, class_loss: str, out: Tensor, factors: ClassFactors | None = None
) -> None:
    """Write ``background_class_gradient`` times ``grad_output`` into an existing tensor.

    Args:
        logits: (B, C, A).
        grad_output: (B, 1, 1) derivative by the sum.
        class_loss: ``bce`` or ``varifocal``.
        out: (B, C, A), in the logits' dtype.
        factors: As in ``background_class_loss``.
    """
    if factors is not None:
        grad_output = factors.weigh(grad_output)  # (B, C or 1, 1)
    if class_loss == "bce" and factors is None and compiling_kernels():
        _write_scaled_sigmoid(logits, grad_output, out)
        return
    wide = logits.to(compute_dtype(logits))
    if class_loss == "bce" and wide.dtype == out.dtype:
        torch.sigmoid(wide, out=out).mul_(grad_output)  # without a temporary
    else:
        out.copy_(background_class_gradient(wide, class_loss).mul_(grad_output))
    if factors is not None:
        factors.zero_(out)


@kernel
def _write_scaled_sigmoid(logits: Tensor, scale: Tensor, out: Tensor) -> None:
    out.copy_(logits.to(scale.dtype).sigmoid() * scale)


def assigned_class_loss(logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """Class loss of the assigned class, whose target is the normalized alignment score.

    Args:
        logits: (...) logits of the assigned classes.
        weights: (...) normalized alignment scores.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        (...); +inf for a logit of +inf, also with a target of 1: no runtime subtracts numbers that large exactly.
    """
    # Not softplus(x) - w x, which is inf - inf for an infinite logit.
    entropy = (1 - weights) * softplus(logits) + weights * softplus(-logits)
    entropy = torch.where((logits == math.inf) & (weights >= 1), math.inf, entropy)
    return weights * entropy if class_loss == "varifocal" else entropy


def assigned_class_gradient(logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """Derivative of ``assigned_class_loss`` by each logit; arguments and shape as there."""
    residual = logits.sigmoid() - weights
    return weights * residual if class_loss == "varifocal" else residual


def assigned_class_correction(logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """``assigned_class_loss`` minus the background loss that ``background_class_loss`` counts for the same logit.

    Args:
        logits: (...) logits of the assigned classes.
        weights: (...) normalized alignment scores.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        (...); 0 for a logit of +inf, for which the background loss is infinite already.
    """
    infinite = logits == math.inf
    x = torch.where(infinite, 0.0, logits)
    if class_loss == "varifocal":
        added = weights * (softplus(x) - x * weights) - _background_varifocal(x)
        return torch.where(infinite, 0.0, added)
    return -x * weights


def _background_varifocal(x: Tensor) -> Tensor:
    return 0.75 * x.sigmoid().square() * softplus(x)


def sum_by_products(levels: Sequence[Channels], dtype: torch.dtype) -> Tensor:
    """Sum softplus over channels and anchors of all levels in few large operations, for export.

    softplus(x) = max(x, 0) + log(1 + e^-|x|), and one logarithm of a product of such factors replaces many.

    Args:
        levels: C channels of each level.
        dtype: The dtype to compute in.

    Returns:
        (B,).
    """
    halves = [_in_halves(level, dtype) for level in levels]
    positive = torch.cat([reduce(torch.add, (_sum_channels(p.clamp(min=0.0)) for p in parts)) for parts in halves], 2)
    excess = torch.cat([_merge(*(torch.exp(-part.abs()) for part in parts)) for parts in halves], 2)
    for _ in range(HALVINGS - 1):
        half = excess.shape[1] // 2
        if half:
            excess = _merge(*excess.split([half, half, *[1] * (excess.shape[1] % 2)], dim=1))
    return (positive + _sum_channels(torch.log1p(excess))).sum(dim=(1, 2))


def _in_halves(level: Channels, dtype: torch.dtype) -> list[Tensor]:
    """The channels of a level in two halves and, of an odd number, a last one."""
    # Each part is sliced from the map itself: a slice of a slice would be copied twice.
    half = level.size // 2
    cuts = ((0, half), (half, half), (2 * half, level.size % 2))
    return [level.narrow(first, size).view().to(dtype) for first, size in cuts if size]


def _sum_channels(x: Tensor) -> Tensor:
    """Sum (B, C, A) over channels to (B, 1, A), as a product that reads memory in its order."""
    return torch.matmul(x.new_ones((1, x.shape[1])), x)


@kernel
def sum_by_planes(logits: Channels, dtype: torch.dtype) -> Tensor:
    """``sum_by_products`` for torch.compile, which fuses many small operations into one pass.

    Args:
        logits: C channels of a level.
        dtype: The dtype to compute in.

    Returns:
        (B,).
    """
    groups = 2 ** min(HALVINGS, logits.size.bit_length() - 1)
    each = logits.size // groups
    cuts = [each] * groups + [logits.size % groups]
    *parts, rest = (part.to(dtype) for part in logits.view().split(cuts, dim=1))
    return _sum_of(parts) + _sum_of([rest])


def _sum_of(parts: list[Tensor]) -> Tensor:
    positive = reduce(torch.add, (part.clamp(min=0.0) for part in parts))
    excess = [torch.exp(-part.abs()) for part in parts]
    while len(excess) > 1:
        excess = [_merge(*pair) for pair in zip(excess[::2], excess[1::2], strict=True)]
    return (positive + torch.log1p(excess[0])).sum(dim=(1, 2))


def _merge(one: Tensor, *others: Tensor) -> Tensor:
    """(1 + a)(1 + b) - 1 of two parts; a third part of a single channel is appended, a single part returned."""
    if not others:
        return one
    other, *rest = others
    merged = one + other + one * other
    return torch.cat([merged, *rest], dim=1) if rest else merged
