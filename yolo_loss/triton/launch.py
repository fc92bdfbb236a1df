"""Where the Triton kernels apply, and how they are launched."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from yolo_loss.assignment.params import AssignerParams

# The k best stay in registers.
MAX_K = 256


def available() -> bool:
    """Whether the package ``triton`` is installed."""
    return importlib.util.find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Whether kernels run on a device: a GPU; ``meta``, where nothing is computed; a CPU in Triton's interpreter."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type in ("cuda", "meta") or interpreted) and available()


def is_supported(dtype: torch.dtype, params: AssignerParams, device: torch.device) -> bool:
    """Whether the kernels can assign: in float32, with up to ``MAX_K`` candidates, on a device that runs them."""
    return dtype == torch.float32 and params.topk <= MAX_K and (params.topk2 or 1) <= MAX_K and runs_on(device)


def launch(kernel: Any, grid: Sequence[int], device: torch.device, arguments: dict[str, Any]) -> None:
    """Launch a kernel on the tensors' device; on ``meta`` there is nothing to compute.

    Args:
        kernel: A Triton kernel.
        grid: Number of programs along up to three axes; none are launched where one is 0.
        device: Of all tensors.
        arguments: Of the kernel, and compiler options, by name.
    """
    if device.type == "meta" or 0 in grid:
        return
    with _current(device):
        kernel[tuple(grid)](**arguments)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the current one, on which Triton launches its kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def steps_of(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """The strides of each tensor's axes, as kernels take them."""
    return tuple(tuple(tensor.stride()) for tensor in tensors)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()


def as_flags(mask: Tensor) -> Tensor:
    """A mask as contiguous bytes, without a copy where it is bool and contiguous."""
    return mask.bool().contiguous().view(torch.uint8)
