"""Processing a batch in chunks of images, so that intermediate results stay in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from yolo_loss.execution.compilation import compiling_kernels
from yolo_loss.structures import Assignment

# Elements of a feature map in one chunk.
ELEMENTS_PER_CHUNK = 2**19


def runs_unchunked(device: torch.device) -> bool:
    """Whether a batch is processed at once: a GPU is faster with large tensors, and a graph has no loop over chunks."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def chunk_slices(sizes: Sequence[int], limit: int) -> list[slice]:
    """Group neighbouring images into chunks, as many as the limit allows and at least one.

    Args:
        sizes: (B,) size of each image.
        limit: Largest size of a chunk of several images.

    Returns:
        Slices that cover all images in order; one empty slice for B = 0.
    """
    bounds, total = [0], 0
    for image, size in enumerate(sizes):
        if total and total + size > limit:
            bounds.append(image)
            total = 0
        total += size
    bounds.append(len(sizes))
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def map_chunks(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function that treats images independently to chunks of a batch.

    Args:
        tensor: (B, ...).
        function: From (b, ...) to (b, ...).

    Returns:
        (B, ...).
    """
    slices = image_slices(tensor)
    return function(tensor) if len(slices) == 1 else torch.cat([function(tensor[images]) for images in slices])


def image_slices(*tensors: Tensor) -> list[slice]:
    """Divide the images of tensors (B, ...) into chunks; a single slice of all where chunks are no gain."""
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if runs_unchunked(tensors[0].device) or compiling_kernels() or recorded:
        return [slice(None)]
    size = sum(math.prod(tensor.shape[1:]) for tensor in tensors)
    return chunk_slices([size] * tensors[0].shape[0], ELEMENTS_PER_CHUNK)


def map_images(function: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Apply a function that treats images independently to a batch; in a graph to one image after the other.

    A runtime executes a graph operator by operator. The intermediate results of one image stay in the processor's
    cache, those of a batch do not.

    Args:
        function: From tensors (b, ...) to (b, ...).
        tensors: (B, ...) each, B >= 1 in a graph.

    Returns:
        (B, ...).
    """
    if not torch.compiler.is_exporting():
        return function(tensors)
    from torch._higher_order_ops.scan import scan  # becomes ONNX's Scan

    def of_image(carry: Tensor, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        return carry.clone(), function([part.unsqueeze(0) for part in parts]).squeeze(0)

    # torch requires a state that passes from one image to the next; nothing is in it.
    results: Tensor = scan(of_image, tensors[0].new_zeros(()), list(tensors))[1]
    return results


def concatenate_assignments(parts: Sequence[Assignment]) -> Assignment:
    """Join the assignments of chunks in their order."""
    return parts[0] if len(parts) == 1 else Assignment(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
