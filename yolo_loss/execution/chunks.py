"""Work in portions of images, so that what lies between two operations stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from yolo_loss.execution.compilation import compiling_kernels
from yolo_loss.structures import Assignment

# Numbers of a map in one portion.
ELEMENTS_PER_CHUNK = 2**19


def is_unchunked(device: torch.device) -> bool:
    """Portions are for processors: a GPU wants one large piece, and a graph has no loop to write them in."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def chunk_slices(sizes: Sequence[int], limit: int) -> list[slice]:
    """Neighbouring images together, as many as the limit allows and at least one.

    Args:
        sizes: (B,) of each image.
        limit: Of a portion.

    Returns:
        Slices that cover all images in order; one empty slice for B = 0.
    """
    bounds, held = [0], 0
    for image, size in enumerate(sizes):
        if held and held + size > limit:
            bounds.append(image)
            held = 0
        held += size
    bounds.append(len(sizes))
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def map_chunks(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each image, of all images of a map.

    Args:
        tensor: (B, ...).
        function: Of (b, ...), to (b, ...).

    Returns:
        (B, ...).
    """
    if is_unchunked(tensor.device) or compiling_kernels() or (tensor.requires_grad and torch.is_grad_enabled()):
        return function(tensor)
    chosen = chunk_slices([tensor[:1].numel()] * tensor.shape[0], ELEMENTS_PER_CHUNK)
    parts = [function(tensor[part]) for part in chosen]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def concatenate_assignments(parts: Sequence[Assignment]) -> Assignment:
    """The assignments of portions, in their order, as one."""
    return parts[0] if len(parts) == 1 else Assignment(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
