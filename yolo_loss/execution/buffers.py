"""Tensor creation: large zeros on a CPU at little cost, and small constants and copies without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy
import numpy.typing
import torch
from torch import Tensor

# Below this length the way to numpy and back takes longer than it saves.
MIN_ARRAY = 2**13
_NUMPY_TYPES = {torch.float16: numpy.float16, torch.float32: numpy.float32, torch.float64: numpy.float64}


def lazy_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Allocate zeros of which the operating system maps only those pages that are written.

    torch writes every zero itself, into small pages. For the dense scores, which are nearly all zero, that takes longer
    than the assignment. numpy leaves zeroing to the operating system, and asks it for huge pages.

    Args:
        shape: Of the tensor.
        like: Gives dtype and device.
    """
    if like.device.type != "cpu" or like.dtype not in _NUMPY_TYPES:
        return like.new_zeros(shape)
    return torch.from_numpy(numpy.zeros(shape, dtype=_NUMPY_TYPES[like.dtype]))


def lazy_zeros_like(tensor: Tensor) -> Tensor:
    """``torch.zeros_like`` through :func:`lazy_zeros`, in the tensor's own memory layout."""
    return lazy_zeros(tensor.shape, tensor) if tensor.is_contiguous() else torch.zeros_like(tensor)


def is_plain(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary ones on a CPU, neither of a graph nor of a transform or a subclass."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)


def as_array(tensor: Tensor, least: int = 0) -> numpy.typing.NDArray[Any] | None:
    """A tensor's memory as an array, for the few operations in which numpy is several times faster.

    Args:
        tensor: Without a gradient, of a dtype that numpy has.
        least: Shortest length for which that is so.

    Returns:
        The array, not copied; None for a shorter tensor, on a GPU, in graphs and under transforms.
    """
    return tensor.numpy() if is_plain(tensor) and tensor.shape[0] >= least else None


def repeat(values: Tensor, segment: Tensor, count: Tensor | None) -> Tensor:
    """The value of each entry's segment, for entries that are stored segment by segment.

    Args:
        values: (G,) of each segment.
        segment: (P,) int64, the segment of each entry, ascending.
        count: (G,) int64, entries of each segment, with which a CPU is faster; or None.

    Returns:
        (P,).
    """
    if count is None or not is_plain(values, segment, count) or segment.shape[0] < MIN_ARRAY:
        return values.index_select(0, segment)
    return torch.from_numpy(numpy.repeat(values.numpy(), count.numpy()))  # reads no index


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Make a tensor of a few numbers without waiting for a GPU, on which it is kept for the next call.

    ``torch.tensor`` would upload them, and wait until the GPU has finished all queued work.

    Args:
        values: N numbers.
        like: Gives dtype and device.

    Returns:
        (N,), not to be written to.
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    plain = type(like) is Tensor and not torch._C._are_functorch_transforms_active()
    # What a CUDA graph records is computed when it is replayed, and memory of one stream is not ready for another.
    if like.device.type != "cuda" or not plain or torch.cuda.is_current_stream_capturing():
        return _filled(values, like.dtype, like.device)
    return kept_constants(tuple(values), like.dtype, like.device, torch.cuda.current_stream(like.device).cuda_stream)


def _filled(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])


@lru_cache(maxsize=64)
def kept_constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:  # noqa: ARG001
    """:func:`constants`, the same tensor each time, for one stream of a GPU."""
    # Tensors of inference mode could not be used in a training step later.
    with torch.inference_mode(False):
        return _filled(values, dtype, device)


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``tensor.to`` without waiting for a copy to a GPU. A copy to the CPU is complete on return."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
