"""log(1 + e^x), and its sum over a map with one logarithm for up to sixteen numbers.

softplus(x) = max(x, 0) + log(1 + e^-|x|), and a sum of such logarithms is the logarithm of a product. Products are kept
less one, (1 + a) (1 + b) - 1 = a + b + a b, so that small numbers lose no digits.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from yolo_loss.channels import Channels
from yolo_loss.compilation import kernel

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
