"""Tensor creation: large zeros on a CPU at little cost, and small constants and copies without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

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


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Make a tensor of a few numbers without waiting for a GPU.

    ``torch.tensor`` would upload them, and wait until the GPU has finished all queued work.

    Args:
        values: N numbers.
        like: Gives dtype and device.

    Returns:
        (N,).
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return torch.cat([like.new_full((1,), value) for value in values])


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``tensor.to`` without waiting for a copy to a GPU. A copy to the CPU is complete on return."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
