"""The three terms of the loss, before any sum, and the way from sums to the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from yolo_loss.anchors import compute_dtype
from yolo_loss.boxes import bbox2dist, ciou
from yolo_loss.execution.buffers import constants
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.chunks import map_chunks
from yolo_loss.execution.compilation import compiling_kernels, kernel
from yolo_loss.structures import Gains


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
    """Distribution focal loss (arXiv 2006.04388), the mean over the four sides.

    The target is a two-hot vector, 1 - |d - r| at the two bins r beside d, so that its gradient needs no scatter.

    Args:
        distri: (..., 4, R) logits; with R = 1 there is no distribution and the term is 0.
        target_bboxes: (..., 4) xyxy, grid units.
        anchor_points: (..., 2) grid units, broadcast.

    Returns:
        (...).
    """
    reg_max = distri.shape[-1]
    if reg_max == 1:
        return torch.zeros_like(distri[..., 0, 0])
    distance = bbox2dist(anchor_points, target_bboxes, reg_max).unsqueeze(-1)  # (..., 4, 1)
    bins = torch.arange(reg_max, dtype=distri.dtype, device=distri.device)
    two_hot = (1.0 - (distance - bins).abs()).clamp(min=0.0)  # (..., 4, R)
    # Selected, not multiplied by 0: the logarithm of a bin beside the target may be infinite.
    log_probabilities = torch.where(two_hot > 0, distri.log_softmax(dim=-1), 0.0)
    return -(two_hot * log_probabilities).sum(dim=-1).mean(dim=-1)


def background_class_loss(logits: Channels, class_loss: str) -> Tensor:
    """The class term as if every target were 0, summed. With ``assigned_class_correction`` no dense target is needed.

    Args:
        logits: C channels of a level, of any floating type.
        class_loss: ``bce``, binary cross-entropy, or ``varifocal`` (Zhang et al., arXiv 2008.13367), which weighs
            the cross-entropy with 0.75 p^2 where no target is, and with the soft score where one is.

    Returns:
        (B,) sum over anchors and classes, float32 at least.
    """
    dtype = compute_dtype(logits.source)
    if class_loss == "bce" and torch.compiler.is_exporting():
        return sum_by_products(logits, dtype)
    if class_loss == "bce" and compiling_kernels():
        return sum_by_planes(logits, dtype)
    return map_chunks(logits.view(), lambda part: _sum_of_negatives(part, dtype, class_loss))


@kernel
def _sum_of_negatives(logits: Tensor, dtype: torch.dtype, class_loss: str) -> Tensor:
    term = _negative_focal if class_loss == "varifocal" else softplus
    return term(logits.to(dtype)).sum(dim=(1, 2))


def background_class_loss_of_levels(levels: Sequence[Channels], class_loss: str) -> Tensor:
    """``background_class_loss`` of all levels together, (B,)."""
    return torch.stack([background_class_loss(level, class_loss) for level in levels]).sum(dim=0)


def assigned_class_loss(assigned_logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """The class term of the assigned class, whose target is the soft score.

    Args:
        own_logits: (...) logits of the assigned classes.
        weights: (...) soft scores.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        (...); +inf for a logit of +inf, also with a target of 1: no runtime would subtract that much exactly.
    """
    # Not softplus(x) - w x, which is inf - inf for an infinite logit.
    entropy = (1 - weights) * softplus(assigned_logits) + weights * softplus(-assigned_logits)
    entropy = torch.where((assigned_logits == math.inf) & (weights >= 1), math.inf, entropy)
    return weights * entropy if class_loss == "varifocal" else entropy


def assigned_class_gradient(assigned_logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """Derivative of ``assigned_class_loss`` by each logit; arguments and shape as there."""
    residual = assigned_logits.sigmoid() - weights
    return weights * residual if class_loss == "varifocal" else residual


def assigned_class_correction(assigned_logits: Tensor, weights: Tensor, class_loss: str) -> Tensor:
    """What the assigned class's target adds to ``background_class_loss``, which has counted it as background.

    Args:
        own_logits: (...) logits of the assigned classes.
        weights: (...) soft scores.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        (...); 0 for a logit of +inf, with which the total is infinite already.
    """
    infinite = assigned_logits == math.inf
    x = torch.where(infinite, 0.0, assigned_logits)
    if class_loss == "varifocal":
        added = weights * (softplus(x) - x * weights) - _negative_focal(x)
        return torch.where(infinite, 0.0, added)
    return -x * weights


def background_class_gradient(logits: Tensor, class_loss: str) -> Tensor:
    """Derivative of ``background_class_loss`` by each logit.

    Args:
        logits: Of any shape.
        class_loss: ``bce`` or ``varifocal``.

    Returns:
        Of the same shape and type.
    """
    p = logits.sigmoid()
    if class_loss == "bce":
        return p
    # d/dx of 0.75 p^2 softplus(x), with dp/dx = p (1 - p) and d softplus/dx = p.
    return 0.75 * p.square() * (2 * (1 - p) * softplus(logits) + p)


def write_background_class_gradient(logits: Tensor, grad_output: Tensor, class_loss: str, out: Tensor) -> None:
    """``background_class_gradient`` times ``grad_output``, written into a tensor of the caller's.

    Args:
        logits: (B, C, A).
        upstream: (B, 1, 1) derivative by the sum.
        class_loss: ``bce`` or ``varifocal``.
        out: (B, C, A), in the logits' dtype.
    """
    wide = logits.to(compute_dtype(logits))
    if class_loss == "bce" and wide.dtype == out.dtype:
        torch.sigmoid(wide, out=out).mul_(grad_output)  # without a temporary
    else:
        out.copy_(background_class_gradient(wide, class_loss).mul_(grad_output))


def loss_from_sums(image_sums: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """The loss of all images together, however many workers computed their sums.

    Args:
        image_sums: (B, 4) box, cls, dfl and target-score sums of every image of the batch.
        gains: Weights of the terms.

    Returns:
        The loss () = sum of the terms times B, and the terms (3,) with gains, before times B.
    """
    total = image_sums.sum(dim=0)  # (4,)
    terms = total[:3] / total[3].clamp(min=1.0)
    items = terms * constants(gains, terms)
    return items.sum() * image_sums.shape[0], items


def _negative_focal(x: Tensor) -> Tensor:
    return 0.75 * x.sigmoid().square() * softplus(x)


# Above this softplus(x) is x; at 40 the two differ by less than float64 can tell.
_THRESHOLD = 40.0
# So often the channels are halved: factors of at most 2 make products of at most 2^16.
_HALVINGS = 4


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), element by element."""
    return functional.softplus(x, threshold=_THRESHOLD)


def sum_by_products(logits: Channels, dtype: torch.dtype) -> Tensor:
    """Sum of softplus over channels and anchors for a graph: few large operations.

    Args:
        logits: C channels of a level.
        dtype: To compute in.

    Returns:
        (B,).
    """
    # Each part is cut from the map itself: a part of a part would be copied twice.
    half = logits.size // 2
    cuts = ((0, half), (half, half), (2 * half, logits.size % 2))
    parts = [logits.part(first, size).view().to(dtype) for first, size in cuts if size]
    positive = torch.stack([part.clamp(min=0.0).sum(dim=(1, 2)) for part in parts]).sum(dim=0)
    excess = _merge(*(torch.exp(-part.abs()) for part in parts))
    for _ in range(_HALVINGS - 1):
        half = excess.shape[1] // 2
        if half:
            excess = _merge(*excess.split([half, half, *[1] * (excess.shape[1] % 2)], dim=1))
    return positive + torch.log1p(excess).sum(dim=(1, 2))


@kernel
def sum_by_planes(logits: Channels, dtype: torch.dtype) -> Tensor:
    """The same for a compiler, which makes one pass of many small operations.

    Args:
        logits: C channels of a level.
        dtype: To compute in.

    Returns:
        (B,).
    """
    groups = 2 ** min(_HALVINGS, logits.size.bit_length() - 1)
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
    """Two parts into one; a third of a single channel, or a part alone, is left as it is."""
    if not others:
        return one
    other, *rest = others
    merged = one + other + one * other
    return torch.cat([merged, *rest], dim=1) if rest else merged
