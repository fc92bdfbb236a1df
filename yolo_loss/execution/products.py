"""Sums of softplus, and their derivative, by products of exponentials: one exponential an element, on a CPU.

softplus(x) = log(1 + e^x), and one logarithm of a product of such factors replaces many. In float32 a product of 16
factors is finite as long as their softplus add up to less than 88. Where one is not, the image is computed again
element by element; so what an image gives depends on its own numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from yolo_loss.execution.chunks import image_slices, runs_unchunked
from yolo_loss.execution.compilation import compiling_kernels
from yolo_loss.execution.transforms import transformed

# Above this softplus(x) is x; at 40 the two differ by less than float64 resolves.
SOFTPLUS_THRESHOLD = 40.0
# How often a list is halved in a product of (1 + e^x): 2^4 factors and, of odd lengths, some more.
HALVINGS = 4
_LOG2_E = math.log2(math.e)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), element by element."""
    return functional.softplus(x, threshold=SOFTPLUS_THRESHOLD)


def in_place(levels: Sequence[Tensor]) -> bool:
    """Whether a CPU runs each operation on these tensors as it is called, neither compiled, recorded nor transformed.

    Then results may be written into existing memory, and numbers may be looked at.
    """
    recorded = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
    eager = not recorded and not compiling_kernels() and not runs_unchunked(levels[0].device)
    return eager and not transformed(levels)


def exponentials(levels: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """e^x of all levels, joined, to about 1e-6 of the value in float32 for |x| up to 20.

    A power of two, because torch's exponential takes twice as long.

    Args:
        levels: (B, C, A_i) each, of any floating dtype.
        dtype: The dtype to compute in.

    Returns:
        (B, C, A) in new memory, in the order of the first level's.
    """
    images, channels, _ = levels[0].shape
    sizes = [level.shape[2] for level in levels]
    if levels[0].stride(1) < levels[0].stride(2):  # channels last
        joined = levels[0].new_empty((images, sum(sizes), channels), dtype=dtype).transpose(1, 2)
    else:
        joined = levels[0].new_empty((images, channels, sum(sizes)), dtype=dtype)
    for level, part in zip(levels, joined.split(sizes, dim=2), strict=True):
        torch.mul(level if level.dtype == dtype else level.to(dtype), _LOG2_E, out=part)
    return joined.exp2_()


def softplus_sums(levels: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Sum softplus over the elements of each image.

    Args:
        levels: (B, C, A_i) each, of any floating dtype and memory layout.
        dtype: The dtype to compute in.

    Returns:
        (B,).
    """
    chunks = [[level[images] for level in levels] for images in image_slices(*levels)]
    sums = torch.cat([_log_product(exponentials(chunk, dtype)) for chunk in chunks])
    return _repair(sums, levels)


def softplus_sums_with_gradient(levels: Sequence[Tensor], scale: Tensor, out: Sequence[Tensor]) -> Tensor:
    """:func:`softplus_sums`, and the derivative of their weighted sum in the same pass.

    Args:
        levels: (B, C, A_i) each, float32 or float64.
        scale: (B, 1, 1) weight of each image's sum, in the dtype to compute in.
        out: The derivative by each level is written to it, in the level's shape and dtype.

    Returns:
        (B,) the sums.
    """
    sums, sizes = [], [level.shape[2] for level in levels]
    for images in image_slices(*levels):
        values = exponentials([level[images] for level in levels], scale.dtype)
        sums.append(_log_product(values))
        one_more = values + 1
        derivative = torch.div(values, one_more, out=one_more)
        for part, gradient in zip(derivative.split(sizes, dim=2), out, strict=True):
            torch.mul(part, scale[images], out=gradient[images])
    total = torch.cat(sums)
    for image in _not_finite(total):
        for level, gradient in zip(levels, out, strict=True):
            gradient[image] = level[image].to(scale.dtype).sigmoid().mul_(scale[image])
    return _repair(total, levels)


def _log_product(values: Tensor) -> Tensor:
    """Sum of log(1 + e) over the elements e of each image (B, C, A); not finite where a product is too large."""
    if values.stride(1) < values.stride(2):
        values = values.transpose(1, 2)  # channels last: the order in memory
    excess = values.flatten(1)
    for _ in range(HALVINGS):
        half = excess.shape[1] // 2
        if not half:
            break
        one, other, *rest = excess.split(half, dim=1)
        # (1 + a)(1 + b) - 1: without the one no digit of a small factor is lost.
        excess = torch.add(one, other).addcmul_(one, other)
        if rest:
            first = excess[:, :1]
            first.copy_(first + rest[0] + first * rest[0])
    return excess.log1p().sum(dim=1)


def _repair(sums: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Compute the sums that are not finite element by element, in place."""
    for image in _not_finite(sums):
        sums[image] = torch.stack([softplus(level[image].to(sums.dtype)).sum() for level in levels]).sum()
    return sums


def _not_finite(sums: Tensor) -> list[int]:
    return [] if math.isfinite(float(sums.sum())) else (~sums.isfinite()).nonzero().flatten().tolist()
