"""The launches of the real host code, with the arguments of each, on tensors without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_loss.triton import assignment, launch, loss

META = torch.device("meta")
# Operations on a GPU's tensors for which no kernel runs: memory without values, and other views of it.
NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view", "_unsafe_view", "as_strided"),
    *("detach", "alias", "slice", "select", "split", "split_with_sizes", "transpose", "t", "expand", "permute"),
    *("unsqueeze", "squeeze", "_reshape_alias", "unbind", "lift_fresh"),
}


class Launch(NamedTuple):
    """A launch of a kernel.

    Attributes:
        name: Of the kernel.
        kernel: The kernel, a Triton function.
        arguments: By name, with compiler options.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]


class Recorded(NamedTuple):
    """What was launched: Triton's kernels; operations of torch that run a kernel; copies from the host."""

    kernels: list[Launch]
    operations: list[str]
    copies: list[str]


@contextmanager
def recorded() -> Iterator[Recorded]:
    """Record launches, and the operations of torch on tensors of the device ``meta``."""
    result = Recorded([], [], [])

    def record(kernel: Any, grid: Any, device: torch.device, arguments: dict[str, Any]) -> None:
        if 0 not in grid:
            result.kernels.append(Launch(kernel.__name__, kernel, arguments))
        launch.launch(kernel, grid, device, arguments)

    patches = [mock.patch.object(module, "launch", record) for module in (assignment, loss)]
    with patches[0], patches[1], _Operations(result):
        yield result


class _Operations(TorchDispatchMode):
    def __init__(self, result: Recorded) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = result

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        on_device = any(tensor.device == META for tensor in tensors_in([args, kwargs, returned]))
        if on_device and name not in NO_KERNEL:
            copies = name in ("_to_copy", "copy_") and any(tensor.device != META for tensor in tensors_in(args))
            (self.result.copies if copies else self.result.operations).append(name)
        return returned


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [tensor for value in values for tensor in tensors_in(value)] if isinstance(values, list | tuple) else []
