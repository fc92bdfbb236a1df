"""Finds operations for which the host waits for a GPU, on a machine that has none.

Tensors of the device ``meta`` have shapes and no numbers. Whatever asks one for its numbers cannot be run, and the code
takes the way that it takes for a GPU, because the device is not the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
# Their result's shape is that of the numbers, or they read one of them.
ASKING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "allclose", "_is_any_true", "_is_all_true"),
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
}
UPLOADING = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


class WaitsError(AssertionError):
    """An operation waits for the GPU."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that would wait for a GPU is an error.

    Raises:
        WaitsError: There was one; its name is the text.
    """
    with _NoUploads(), _NoQuestions():  # type: ignore[no-untyped-call]
        yield


class _NoQuestions(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if any(tensor.device == META for tensor in tensors):
            asks = name in ASKING or (name == "repeat_interleave" and kwargs.get("output_size") is None)
            masks = name.startswith("index") and any(_is_mask(index) for index in _indices(args))
            if asks or masks:
                raise WaitsError(name)
        if name in ("_to_copy", "copy_") and _waits_for_copy(name, tensors, args, kwargs):
            raise WaitsError(f"{name} between devices")
        return func(*args, **kwargs)


class _NoUploads(TorchFunctionMode):
    """``torch.tensor((1, 2), device=...)`` is written on the CPU and copied; no operation shows it."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in UPLOADING and result.device == META:
            raise WaitsError(func.__name__)
        return result


def _indices(args: Any) -> list[Any]:
    return [entry for arg in args if isinstance(arg, list | tuple) for entry in arg]


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _waits_for_copy(name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> bool:
    if name == "_to_copy":
        source, target = tensors[0].device, torch.device(kwargs.get("device") or tensors[0].device)
        waits = not kwargs.get("non_blocking", False)
    else:
        target, source = (tensor.device for tensor in tensors)
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    return source.type != target.type and (waits or source == META)


def on_meta(tensor: Tensor) -> Tensor:
    """The same shape, layout and type without numbers."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
