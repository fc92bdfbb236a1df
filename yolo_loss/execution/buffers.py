"""New tensors: large zeros on a CPU, and constants and copies for which no GPU is waited for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

_NUMPY_TYPES = {torch.float16: numpy.float16, torch.float32: numpy.float32, torch.float64: numpy.float64}


def lazy_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros of which the system hands out only those pages that are written.

    torch writes every zero itself, into small pages. For the dense scores, nearly all of them zero, that takes longer
    than assigning. numpy leaves the zeros to the system, and asks it for huge pages.

    Args:
        shape: Of the buffer.
        like: Gives type and device.
    """
    if like.device.type != "cpu" or like.dtype not in _NUMPY_TYPES:
        return like.new_zeros(shape)
    return torch.from_numpy(numpy.zeros(shape, dtype=_NUMPY_TYPES[like.dtype]))


def lazy_zeros_like(tensor: Tensor) -> Tensor:
    """``torch.zeros_like`` by way of :func:`lazy_zeros`, in the tensor's own memory layout."""
    return lazy_zeros(tensor.shape, tensor) if tensor.is_contiguous() else torch.zeros_like(tensor)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A few numbers as a tensor.

    ``torch.tensor`` uploads them, and waits until the GPU has done all that was queued before.

    Args:
        values: N numbers.
        like: Gives type and device.

    Returns:
        (N,).
    """
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return torch.cat([like.new_full((1,), value) for value in values])


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``tensor.to``, not waiting for a GPU that it goes to. What comes from one must have arrived."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")
